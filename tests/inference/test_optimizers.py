"""Optimisers against their equations, and `fit` with each of torch's."""

from functools import partial

import pytest
import torch

from pyro_mvae import VAE, Interrupted, RootAdam, fit
from pyro_mvae.inference.optimizers import make_optimizers
from tests.inference.mishaps import interrupt_at

FIRST_ORDER = [
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
]


def small():
    torch.manual_seed(0)
    return VAE((1, 16, 16), 4, net="mlp", hidden=16)


def test_root_adam_is_equations_23_to_28():
    w, expected = torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.tensor([1.0, -2.0], dtype=torch.float64)
    optimizer = RootAdam([w], lr=0.01, betas=(0.8, 0.9), eps=0.05)
    m = v = torch.zeros(2, dtype=torch.float64)
    for t in range(1, 6):
        g = 2 * expected * t
        w.grad = 2 * w.detach() * t
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        expected = expected - 0.01 * (m / (1 - 0.8**t)) / (v / (1 - 0.9**t) + 0.05).sqrt()
        torch.testing.assert_close(w.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_root_adam_is_adam_where_epsilon_does_not_matter(images):
    models = [small(), small()]
    for model, kind in zip(models, (torch.optim.Adam, RootAdam), strict=True):
        fit(model, images[:128], epochs=1, lr=1e-3, optimizer=kind)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_any_optimizer_of_torch_trains_and_resumes(name, images, tmp_path):
    how = {"optimizer": getattr(torch.optim, name), "lr": 1e-3, "batch_size": 32, "epochs": 2, "compile": "eager"}
    whole, part, state = small(), small(), tmp_path / "state.safetensors"
    fit(whole, images[:64], **how)
    moved = [name for name, p in whole.named_parameters() if not torch.equal(p, small().get_parameter(name))]
    assert {name.split(".")[0] for name in moved} == {"encoder", "decoder"}

    with pytest.raises(Interrupted):
        fit(small(), images[:64], **how, checkpoint=state, progress=interrupt_at(2))
    fit(part, images[:64], **how, checkpoint=state, resume=True)
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)


def test_plain_gradient_steps_on_phi_are_equation_29():
    vae = small()
    sides = make_optimizers(vae, optimizer=torch.optim.Adam, guide_optimizer=torch.optim.SGD, lr=1e-3, guide_lr=0.5)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    for p in vae.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in sides.values():
        optimizer.step()
    for name, p in vae.named_parameters():
        step = 0.5 if name.startswith("encoder") else 1e-3
        torch.testing.assert_close(before[name] - p, torch.full_like(p, step), rtol=1e-3, atol=1e-6)


def test_other_settings_by_partial_and_mistakes(images):
    fit(small(), images[:64], epochs=1, optimizer=partial(torch.optim.SGD, momentum=0.9), lr=1e-3)
    with pytest.raises(ValueError, match="L-BFGS"):
        fit(small(), images[:64], optimizer=torch.optim.LBFGS)
    with pytest.raises(ValueError, match=r"SGD\(rate=1\) can't be made"):
        fit(small(), images[:64], optimizer=partial(torch.optim.SGD, rate=1))
    with pytest.raises(ValueError, match="eps > 0"):
        RootAdam([torch.nn.Parameter(torch.zeros(1))], eps=0.0)


def test_clipping_bounds_the_step_of_plain_gradient_descent(images):
    vae = small()
    before = torch.cat([p.detach().flatten().clone() for p in vae.parameters()])
    fit(vae, images[:32], epochs=1, batch_size=32, optimizer=torch.optim.SGD, lr=1.0, clip=0.01, controllers=())
    after = torch.cat([p.detach().flatten() for p in vae.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-2)


def test_the_average_of_the_weights_is_what_the_model_is_given(images):
    plain, averaged, seen = small(), small(), []

    def watch(model, row):
        seen.append([p.detach().clone() for p in model.parameters()])

    how = {"epochs": 3, "batch_size": 64, "controllers": ()}
    fit(plain, images[:64], **how)
    fit(averaged, images[:64], **how, ema=0.5, callbacks=[watch])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), seen[-1], strict=True))
    start = [p.detach() for p in small().parameters()]
    for p, initial, first, second, third in zip(averaged.parameters(), start, *seen, strict=True):
        expected = initial
        for step, value in enumerate((first, second, third)):
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="ema is 1"):
        fit(small(), images, ema=1.0)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 arithmetic on this machine")
def test_mixed_precision_trains_to_nearly_the_same_bound(images):
    models = [small(), small()]
    full, mixed = (
        fit(model, images, epochs=4, batch_size=32, precision=precision)
        for model, precision in zip(models, ("float32", "bfloat16"), strict=True)
    )
    assert mixed["loss"].iloc[-1] == pytest.approx(full["loss"].iloc[-1], rel=0.05)
    assert not torch.equal(next(models[0].parameters()), next(models[1].parameters()))
    assert all(p.dtype == torch.float32 for p in models[1].parameters())


def test_a_precision_that_the_hardware_lacks_is_refused(images, monkeypatch):
    import pyro_mvae.inference.asvi as asvi

    def lacking(precision, device):
        raise ValueError(f"this {device.type} has no {precision} arithmetic")

    monkeypatch.setattr(asvi, "require", lacking)
    with pytest.raises(ValueError, match="no bfloat16 arithmetic"):
        fit(small(), images, precision="bfloat16")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="precision is 'half'"):
        fit(small(), images, precision="half")
