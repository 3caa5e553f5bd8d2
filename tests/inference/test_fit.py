from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from pyro_mvae import VAE, Interrupted, Quantize, fit, load_model, penalties, save_model, tuning
from pyro_mvae.inference.checkpoint import read, write
from pyro_mvae.inference.stage import fit_stage
from tests.catalog import MODELS, SIZES, unchecked
from tests.inference.mishaps import interrupt_at, poisoned


def small():
    torch.manual_seed(0)
    return MODELS["MVAE"]((1, 16, 16))


def test_the_bound_improves_on_images_not_trained_on(images):
    from pyro_mvae import negative_log_likelihood

    vae = small()
    before = negative_log_likelihood(vae, images[192:], num_samples=10).nats
    history = fit(vae, images[:192], epochs=15, batch_size=32)
    after = negative_log_likelihood(vae, images[192:], num_samples=10).nats
    assert after < 0.6 * before
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["loss"].values == pytest.approx((history["likelihood"] + history["kl"]).values)
    assert history["epoch"].tolist() == list(range(15))


@pytest.mark.parametrize("step", [0, 2, 3, 7])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(step, images, tmp_path):
    settings = {"epochs": 3, "batch_size": 60, "seed": 5, "checkpoint": tmp_path / "state.safetensors"}
    whole, part = small(), small()
    expected = fit(whole, images[:180], **{**settings, "checkpoint": None})
    with pytest.raises(Interrupted, match="stopped at step"):
        fit(part, images[:180], **settings, progress=interrupt_at(step))
    resumed = small()
    history = fit(resumed, images[:180], **settings, resume=True)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert history["loss"].tolist() == expected["loss"].tolist()


def test_resuming_with_other_settings_is_refused(images, tmp_path):
    state = tmp_path / "state.safetensors"
    fit(small(), images[:64], epochs=1, checkpoint=state)
    with pytest.raises(ValueError, match=r"made with lr=0\.003, not 0\.1"):
        fit(small(), images[:64], epochs=1, lr=0.1, checkpoint=state, resume=True)
    other = MODELS["VAE"]((1, 16, 16))
    with pytest.raises(ValueError, match="of another model"):
        fit(other, images[:64], epochs=1, checkpoint=state, resume=True)


def test_a_loss_that_is_no_number_takes_the_run_back(images, tmp_path):
    vae, state = small(), tmp_path / "state.safetensors"
    settings = {"epochs": 4, "batch_size": 32, "checkpoint": state, "checkpoint_seconds": 0.0}
    history = fit(vae, images[:128], **settings, progress=poisoned({5, 17}))
    changes = history.attrs["changes"]
    assert [change["value"] for change in changes] == [0.5, 0.25]
    assert "the loss became nan at step 4 of epoch 2: back to" in changes[0]["reason"]
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    plain = fit(small(), images[:128], epochs=4, batch_size=32)
    assert history["loss"][0] == plain["loss"][0]
    assert history["learning_rate"][3] == pytest.approx(plain["learning_rate"][3] / 4)


def test_a_loss_that_stays_no_number_ends_the_run_at_its_last_good_state(images, tmp_path):
    state = tmp_path / "state.safetensors"
    settings = {"epochs": 4, "checkpoint": state, "batch_size": 32}
    with pytest.raises(FloatingPointError, match=r"nan at step 4 of epoch 3, and again .* 3 times; .*state\.safe.*lower lr"):
        fit(small(), images[:128], **settings, progress=poisoned(set(range(8, 99))))
    tensors, description = read(state)
    assert description["position"]["epoch"] == 2
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_loss_that_explodes_takes_the_run_back(images):
    def shaken(steps, description, total):
        for number, x in enumerate(steps):
            yield 1e3 * x if number in (10, 11) else x

    history = fit(small(), images[:128], epochs=4, batch_size=32, progress=shaken)
    assert "exploded" in history.attrs["changes"][0]["reason"]
    assert history["loss"].max() < 1000


@pytest.mark.parametrize("setting", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}])
def test_settings_that_cannot_be_are_refused(setting, images):
    with pytest.raises(ValueError, match=next(iter(setting))):
        fit(small(), images, **setting)


def test_a_single_image_left_over_does_no_harm(images):
    vae = small()
    history = fit(vae, images[:65], epochs=2, batch_size=32)
    assert all(value.isfinite().all() for value in vae.state_dict().values())
    assert "changes" in history.attrs
    assert history.attrs["changes"] == []


def test_batches_of_one_are_an_error_where_there_is_batch_normalisation(images):
    with pytest.raises(ValueError, match="batch_size is 1, and the model normalises by its batches"):
        fit(small(), images[:8], epochs=1, batch_size=1)
    with pytest.raises(ValueError, match="there is one image"):
        fit(small(), images[:1], epochs=1)


class Mine:
    """A penalty of one's own."""

    weight = 0.5

    def __init__(self, name, value):
        self.name, self.value = name, value

    def __call__(self, vae, x, model_sites, guide_sites):
        return self.value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2.5}, "epochs is 2.5, expected a whole number"),
        ({"batch_size": 2.5}, "batch_size is 2.5, expected a whole number"),
        ({"lr": "fast"}, "lr is 'fast', expected a number"),
        ({"seed": -1}, "seed is -1, expected a whole number, 0 or more"),
        ({"kl_weight": float("inf")}, "the weight of kl is inf"),
        ({"controllers": tuning.OneCycle()}, "controllers is OneCycle.*expected a list"),
        ({"controllers": [tuning.OneCycle]}, "is no controller: expected values"),
        ({"penalties": None}, "penalties is None, expected a list"),
        ({"penalties": [Mine("likelihood", torch.ones(()))]}, "a penalty's name is 'likelihood'"),
        ({"penalties": [Mine("epoch", torch.ones(()))]}, "a penalty's name is 'epoch'"),
        ({"penalties": [Mine("a.b", torch.ones(()))]}, "a penalty's name is 'a.b'"),
        ({"penalties": [Mine("mine", 1.0)]}, "the penalty 'mine' returned 1.0, expected a tensor"),
        ({"penalties": [Mine("mine", torch.ones(2))]}, "the penalty 'mine' returned tensor"),
        ({"penalties": [penalties.Prune(1.0), penalties.Prune(2.0)]}, "names are prune, prune: expected names that differ"),
        ({"controllers": [tuning.Plateau(on="nope")]}, "waits for 'nope', but the history has only: epoch, loss"),
        ({"controllers": [tuning.Multiplier("kl", "foo", 1.0)]}, "to hold 'foo', but there are only"),
        ({"controllers": [tuning.rate(1.0)], "kl_weight": 0.0}, "the weight of 'kl' is 0, and a multiplier of 0 stays so"),
        ({"test": torch.zeros(0, 1, 16, 16).byte()}, "there are no test images"),
        ({"resume": True}, "give checkpoint="),
        ({"optimizer": torch.optim.SparseAdam}, "SparseAdam is for sparse gradients"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=1.0)}, "the optimiser is a SGD: give its class"),
    ],
)
def test_settings_that_make_no_sense_are_explained(settings, message, images):
    with pytest.raises(ValueError, match=message):
        unchecked(fit)(small(), images[:64], **{"epochs": 1, **settings})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda images: (small(), "digits"), "data is a str, expected a Data, see load_data"),
        (lambda images: (small(), images.numpy()), "data is a ndarray"),
        (lambda images: (small(), images[:0]), "there are no images"),
        (lambda images: (torch.nn.Linear(2, 2), images), "the model is a Linear, expected a module with a method `model`"),
    ],
)
def test_what_cannot_be_fitted_is_explained(make, message, images):
    with pytest.raises(ValueError, match=message):
        unchecked(fit)(*make(images), epochs=1)


def test_a_quantised_model_can_be_averaged(images):
    """Its ranges are infinite until the first batch has been seen."""
    vae = Quantize()(small())
    history = fit(vae, images[:128], epochs=2, batch_size=32, ema=0.9, test=images[:32])
    assert history["test_loss"].notna().all()
    assert all(value.isfinite().all() for value in vae.state_dict().values())


def test_gradients_that_an_earlier_run_left_do_no_harm(images):
    vae = VAE((1, 16, 16), 4, net="mlp", widths=(8,), hidden=8)
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.grad = torch.ones(*reversed(parameter.shape)).permute(*reversed(range(parameter.ndim)))
    fit(vae, images[:64], epochs=1)
    fit(twin, images[:64], epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), twin.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_what_stands_where_a_state_is_to_be_kept_is_left_alone(images, tmp_path):
    folder, notes = tmp_path / "folder", tmp_path / "notes.txt"
    folder.mkdir()
    notes.write_text("These are my notes.")
    with pytest.raises(ValueError, match="is a folder"):
        fit(small(), images[:64], epochs=1, checkpoint=folder)
    with pytest.raises(ValueError, match="is no checkpoint"):
        fit(small(), images[:64], epochs=1, checkpoint=notes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "notes.txt"]
    assert notes.read_text() == "These are my notes."


def test_a_run_that_is_killed_at_its_first_step_is_resumed_as_it_began(images, tmp_path):
    """How its steps are run is chosen by time: it is kept before the first."""
    state = tmp_path / "state.safetensors"

    def look(steps, description, total):
        assert read(state)[1]["position"]["how"] == {"backend": "eager", "layout": "contiguous"}
        return steps

    fit(small(), images[:64], epochs=1, checkpoint=state, compile="eager", layout="contiguous", progress=look)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: VAE((1, 16, 16), 4, likelihood="gaussian"), "distributions of two kinds, Normal and Bernoulli"),
        (lambda: VAE((1, 16, 16), 5), "codes of the sizes 5 and 4"),
    ],
)
def test_a_teacher_that_has_no_divergence_from_the_student_is_refused(teacher, message, images):
    with pytest.raises(ValueError, match=message):
        fit(small(), images[:64], epochs=1, penalties=[penalties.Distill(1.0, teacher())])
    with pytest.raises(ValueError, match="the teacher is a NoneType"):
        penalties.Distill(1.0, None)


def test_images_of_another_shape_are_refused(images):
    with pytest.raises(ValueError, match=r"\(n, 1, 16, 16\)"):
        fit(small(), images[:, :, :12], epochs=1)


def test_theta_and_phi_have_their_own_rates(images):
    vae = small()
    before = copy.deepcopy(vae)
    fit(vae, images[:64], epochs=1, lr=1e-3, guide_lr=1e-12)
    old = before.state_dict()
    moved = {name: float((value.detach() - old[name].detach()).abs().max()) for name, value in vae.named_parameters()}
    assert max(value for name, value in moved.items() if name.startswith("encoder")) < 1e-9
    assert min(value for name, value in moved.items() if not name.startswith("encoder")) > 1e-6


def test_distillation_brings_the_student_closer_to_the_teacher(images):
    teacher = MODELS["VAE"]((1, 16, 16))
    fit(teacher, images, epochs=5)
    gaps = []
    for weight in (0.0, 3.0):
        student = VAE((1, 16, 16), 4, **SIZES)
        fit(student, images, epochs=8, penalties=[penalties.Distill(weight, teacher)])
        x = images.float() / 255
        gaps.append(float((student.encode(x) - teacher.encode(x)).square().mean().detach()))
    assert gaps[1] < 0.5 * gaps[0]


def test_a_stage_that_is_done_is_read(images, tmp_path):
    from pyro_mvae.data import Data, Split

    data = Data("squares", train=Split(images[:64]), test=Split(images[64:]), binarization="none")
    path = tmp_path / "stage.safetensors"
    vae, history = fit_stage(small(), data, path, epochs=1)
    assert not list(tmp_path.glob("*training*"))
    again, same = fit_stage(small(), data, path, epochs=1, resume=True)
    assert history["loss"].tolist() == same["loss"].tolist()
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_model_is_started_once_whatever_interrupts_it(images, tmp_path, monkeypatch):
    from pyro_mvae import VaDE
    from pyro_mvae.data import Data, Split

    class Started(VaDE):
        def initialize(self, data, **how):
            starts.append(0)
            with torch.no_grad():
                self.mixture.loc.fill_(3.0)

    def interrupted(model, data, **settings):
        raise KeyboardInterrupt

    starts = []
    data = Data("squares", train=Split(images[:64]), test=Split(images[64:]), binarization="none")
    path, how = tmp_path / "stage.safetensors", {"resume": True, "initialize": True, "epochs": 1, "lr": 1e-9}
    monkeypatch.setattr("pyro_mvae.inference.stage.fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_stage(Started((1, 16, 16), 4, num_clusters=2), data, path, **how)
    monkeypatch.undo()
    vae, history = fit_stage(Started((1, 16, 16), 4, num_clusters=2), data, path, **how)
    assert len(starts) == 1
    assert torch.allclose(vae.mixture.loc, torch.tensor(3.0))
    assert "initialize_seconds" in history.attrs
    assert [each.name for each in tmp_path.iterdir()] == ["stage.safetensors"]


def test_checkpoints_that_are_none(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_model(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not one of pyro-mvae"):
        load_model(path)
    save_model(path, small())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_model(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="of another model"):
        load_model(path, into=MODELS["VAE"]((1, 16, 16)))
    write(path, {}, {"format": 99})
    with pytest.raises(ValueError, match="upgrade"):
        load_model(path)
    write(path, {"a": torch.zeros(1)}, {"settings": {}})
    with pytest.raises(ValueError, match="resume the run"):
        load_model(path)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(path, small(), history=[{"loss": 1.0}])
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyro_mvae.inference.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(path, small())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert json.dumps(read(path)[1]["notes"]) == '{"history": [{"loss": 1.0}]}'
