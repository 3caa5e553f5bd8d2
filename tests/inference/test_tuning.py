"""Controllers: each alone on made-up histories, and in a run."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from pyro_mvae import VAE, Interrupted, fit, penalties, tuning
from pyro_mvae.inference.asvi import negative_bound
from pyro_mvae.inference.tuning import Change, Now
from tests.catalog import CONTROLLERS
from tests.inference.mishaps import interrupt_at


def small():
    torch.manual_seed(0)
    return VAE((1, 16, 16), 4, net="mlp", hidden=16)


def now(*, epoch=0.0, epochs=10, terms=None, losses=(), value=1.0, model=None):
    history = [{"epoch": i, "test_loss": loss} for i, loss in enumerate(losses)]
    return Now(model=model or nn.Identity(), epoch=epoch, epochs=epochs, terms=terms or {}, history=history, value=value)


def asked(controller, losses, *, value=1.0):
    """What a controller says after each epoch."""
    memory, said = {}, []
    for done in range(1, len(losses) + 1):
        change = controller(now(losses=losses[:done], value=value), memory)
        value = value if change is None else change.value
        said.append(None if change is None else change.value)
    return said


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_changes_a_run_and_can_be_rebuilt(name, images):
    """The same run without it ends elsewhere; its memory is what JSON can hold."""
    controller, how = CONTROLLERS[name], {"epochs": 3, "batch_size": 32, "test": images[64:128]}
    plain, changed = small(), small()
    fit(plain, images[:64], controllers=(), **how)
    fit(changed, images[:64], controllers=[controller], **how)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), changed.parameters(), strict=True))
    assert eval(repr(controller), vars(tuning)) == controller
    memory = {}
    controller(now(losses=[3.0, 4.0], terms={"kl": 3.0}), memory)
    assert json.loads(json.dumps(memory)) == memory


def test_one_cycle_rises_and_falls():
    factors = [tuning.OneCycle()(now(epoch=epoch), {}).value for epoch in (0.5, 1.0, 5.5, 10.0)]
    assert factors == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_warm_up_starts_at_nothing_and_stays_at_its_end():
    warm_up = tuning.WarmUp("kl", epochs=4, end=2.0)
    assert [warm_up(now(epoch=epoch, value=-1.0), {}).value for epoch in (0, 1, 4, 9)] == [0.0, 0.5, 2.0, 2.0]
    assert warm_up(now(epoch=9, value=2.0), {}) is None


def test_what_waits_for_a_plateau():
    losses = [5.0, 4.0, 4.1, 4.2, 3.9, 4.0, 4.0, 4.0, 4.0]
    assert asked(tuning.Plateau(patience=2), losses) == [None, None, None, 0.5, None, None, 0.25, None, 0.125]
    assert asked(tuning.GrowBatch(100, patience=2), losses, value=32) == [None, None, None, 64, None, None, 100, None, None]
    assert asked(tuning.EarlyStopping(patience=3), losses, value=99)[:8] == [None] * 7 + [8]
    assert asked(tuning.EarlyStopping(patience=3, least=0.5), losses, value=99)[4] == 5


@pytest.mark.parametrize(("sense", "measured", "rises"), [(1, 30.0, True), (1, 10.0, False), (-1, 30.0, False), (-1, 10.0, True)])
def test_a_multiplier_rises_while_its_constraint_is_broken(sense, measured, rises):
    multiplier = tuning.Multiplier("kl", "kl", 20.0, sense=sense)
    memory, value = {}, 1.0
    for _ in range(5):
        change = multiplier(now(terms={"kl": measured}, value=value), memory)
        assert (change.value > value) is rises
        assert "kl is" in change.reason
        value = change.value
    assert abs(math.log(value)) == pytest.approx(5 * 0.1 * 0.5, rel=1e-6)


def test_measures_on_a_model():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[10.0, 0.05, 0.0, 1.0]])
    assert tuning.MEASURES["weights left"](now(model=layer)) == 0.5
    layer.weight.data = torch.tensor([[1.0, 0.25, 0.0, 0.0]])
    assert tuning.MEASURES["rounding to 2 bits"](now(model=layer)) == pytest.approx(0.25 / 1.25)


def last(history, column):
    return history[column].iloc[-1]


STEERED = {"batch_size": 16, "penalties": [penalties.Sparse(0.1)], "compile": "eager"}


@pytest.fixture(scope="module")
def free(images):
    """A run that nothing steers."""
    return fit(small(), images, epochs=40, controllers=(), **STEERED)


@pytest.mark.parametrize(
    ("controller", "column", "target"),
    [(tuning.rate, "kl", 3.0), (tuning.distortion, "likelihood", 45.0), (tuning.code_l1, "sparse", 1.0)],
)
def test_a_target_is_reached(controller, column, target, images, free):
    """Within a fifth; without the controller it is missed by more."""
    steered = fit(small(), images, epochs=80, controllers=[controller(target, rate=0.5)], **STEERED)
    assert abs(last(free, column) - target) > 0.2 * target
    assert steered[column].iloc[-5:].mean() == pytest.approx(target, rel=0.2)


def test_a_share_of_the_weights_is_made_nothing(images):
    vae = small()
    controllers = [tuning.OneCycle(), tuning.weight_sparsity(0.5, rate=0.5)]
    fit(vae, images, epochs=40, batch_size=16, penalties=[penalties.Prune(1e-4)], controllers=controllers)
    assert tuning.MEASURES["weights left"](now(model=vae)) < 0.6
    assert tuning.MEASURES["weights left"](now(model=small())) > 0.9


def test_the_batch_grows_and_the_run_stops_early_and_says_why(images):
    controllers = [tuning.GrowBatch(64, patience=1, least=100.0), tuning.EarlyStopping(patience=5, least=100.0)]
    history = fit(small(), images[:128], epochs=30, batch_size=16, controllers=controllers, test=images[128:])
    assert history["batch_size"].tolist() == [16, 16, 32, 64, 64, 64]
    reasons = [change["reason"] for change in history.attrs["changes"]]
    assert len(history) == 6
    assert reasons[0] == "test_loss was not bettered for 1 epochs"
    assert "at best" in reasons[-1]
    assert history["test_loss"].notna().all()


def test_the_best_weights_are_kept_though_the_run_goes_on_to_worse_ones(images, tmp_path):
    """The rate grows until the run is spoilt; also for a run that was interrupted after its best epoch."""
    spoil = tuning.WarmUp("lr", epochs=6, start=0.1, end=300.0)
    how = {"epochs": 6, "batch_size": 32, "controllers": [spoil], "keep": "best", "test": images[128:]}
    whole, part, seen, state = small(), small(), [], tmp_path / "state.safetensors"
    history = fit(whole, images[:128], **how, callbacks=[lambda model, row: seen.append(copy.deepcopy(model.state_dict()))])
    best = int(history["test_loss"].idxmin())
    assert best < 5
    assert negative_bound(whole, images[128:]) == pytest.approx(history["test_loss"].min())
    with pytest.raises(Interrupted):
        fit(small(), images[:128], **how, checkpoint=state, progress=interrupt_at(4 * (best + 1) + 1))
    fit(part, images[:128], **how, checkpoint=state, resume=True)
    for expected, a, b in zip(seen[best].values(), whole.state_dict().values(), part.state_dict().values(), strict=True):
        assert torch.equal(a, expected)
        assert torch.equal(b, expected)
    with pytest.raises(ValueError, match="needs the bound on test images"):
        fit(small(), images[:128], keep="best")


def test_a_warm_up_of_the_kl_shows_in_the_history(images):
    history = fit(small(), images[:64], epochs=4, batch_size=32, controllers=[tuning.WarmUp("kl", epochs=2)])
    assert history["kl_weight"].tolist() == [0.25, 0.75, 1.0, 1.0]
    assert history["learning_rate"].tolist() == pytest.approx([3e-3] * 4)


def test_a_controlled_run_that_is_resumed_is_controlled_as_before(images, tmp_path):
    controllers = [
        tuning.Plateau(patience=1, least=3.0),
        tuning.rate(3.0),
        tuning.GrowBatch(60, patience=2, least=3.0),
    ]
    how = {"epochs": 6, "batch_size": 20, "controllers": controllers, "test": images[120:]}
    whole, part, state = small(), small(), tmp_path / "state.safetensors"
    expected = fit(whole, images[:120], **how)
    with pytest.raises(Interrupted):
        fit(small(), images[:120], **how, checkpoint=state, progress=interrupt_at(20))
    history = fit(part, images[:120], **how, checkpoint=state, resume=True)
    assert history.attrs["changes"] == expected.attrs["changes"]
    assert len(expected.attrs["changes"]) > 3
    for a, b in zip(whole.state_dict().values(), part.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_controller_of_ones_own(images, tmp_path):
    class Halve:
        knob, moment = "lr", "epoch"

        def __call__(self, now, memory):
            return Change(now.value / 2, "an epoch is over")

    state = tmp_path / "state.safetensors"
    fit(small(), images[:64], epochs=3, controllers=[Halve()], checkpoint=state)
    history = fit(small(), images[:64], epochs=3, controllers=[Halve()], checkpoint=state, resume=True)
    assert history["learning_rate"].tolist() == pytest.approx([3e-3, 1.5e-3, 0.75e-3])
    assert len(history.attrs["changes"]) == 3


def test_mistakes_are_explained(images):
    for controllers, message in [
        ([tuning.code_l1(1.0)], "'sparse', but this run has only: lr, batch_size, epochs, kl, theta_kl"),
        ([tuning.rate(1.0), tuning.WarmUp("kl", epochs=1)], "two controllers are for 'kl'"),
        ([tuning.EarlyStopping()], "needs the bound on test images"),
        ([tuning.WarmUp("lr", epochs=1, moment="never")], "acts at 'never'"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(small(), images, controllers=controllers)
    for wrong in (lambda: tuning.rate(0.0), lambda: tuning.WarmUp("lr", epochs=0), lambda: tuning.weight_sparsity(1.0)):
        with pytest.raises(ValueError, match="expected"):
            wrong()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tuning.OneCycle(rise=2.0), "rise is 2.0, expected a share"),
        (lambda: tuning.WarmUp("kl", epochs=0), "epochs is 0, expected more than 0"),
        (lambda: tuning.WarmUp("kl", epochs=2, end=-1.0), "end is -1.0, expected 0 or more"),
        (lambda: tuning.Plateau(factor=-1.0), "factor is -1.0, expected a share"),
        (lambda: tuning.Plateau(patience=0), "patience is 0, expected a whole number"),
        (lambda: tuning.GrowBatch(64, factor=0.001), "factor is 0.001, expected more than 1"),
        (lambda: tuning.EarlyStopping(patience=0), "patience is 0"),
        (lambda: tuning.Multiplier("kl", "kl", 1.0, bounds=(2.0, 1.0)), "bounds are"),
        (lambda: tuning.Multiplier("kl", "kl", 1.0, sense=0), "sense is 0"),
        (lambda: tuning.quantization_error(0.1, bits=17), "expected 2 to 16"),
    ],
)
def test_controllers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
