"""Milliseconds of one training step, optimiser included: Pyro's own SVI, PyTorch written by hand, and the pair in one graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from benchmarks.by_hand import LOSSES
from benchmarks.interleave import interleaved, one_core
from pyro_mvae import VAE, Objective, models
from pyro_mvae.inference import compile_gradients
from pyro_mvae.inference.layout import like
from pyro_mvae.inference.tracing import own_noise
from pyro_mvae.nets.conv import channels_last

FORMATS = {"": torch.contiguous_format, ", channels_last": torch.channels_last}
PYRO = "SVI.step"


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.loc, self.log_scale = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.softplus(self.body(x.flatten(1)))
        return self.loc(h), self.log_scale(h).exp()


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.logits = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, z: Tensor) -> Tensor:
        return self.logits(F.softplus(self.body(z))).unflatten(1, (1, 28, 28))


def usual(kind: type[VAE]) -> Callable[[], VAE]:
    return lambda: kind((1, 28, 28))


MODELS: dict[str, Callable[[], VAE]] = {
    "MLP 784-400-20": lambda: VAE((1, 28, 28), 20, encoder=Encoder(), decoder=Decoder()),
    **{name: usual(getattr(models, name)) for name in LOSSES},
}


def hand_step(vae: VAE, x: Tensor, *, compiled: bool) -> Callable[[], Any]:
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
    by_hand = LOSSES[type(vae).__name__]
    loss: Any = torch.compile(by_hand) if compiled else by_hand

    def step() -> None:
        optimizer.zero_grad()
        loss(vae, x).backward()
        optimizer.step()

    return step


def our_step(vae: VAE, x: Tensor, *, backend: str) -> Callable[[], Any]:
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
    graph = compile_gradients(Objective(vae), x, backend=backend)

    def step() -> None:
        for parameter, gradient in zip(vae.parameters(), graph(x)[1], strict=True):
            parameter.grad = like(parameter, gradient)
        optimizer.step()

    return step


def candidates(make: Callable[[], VAE], x: Tensor) -> dict[str, Callable[[], Any]]:
    vae = make()
    bound = TraceEnum_ELBO(max_plate_nesting=1) if isinstance(vae, models.GMVAE) else TraceMeanField_ELBO()
    svi = SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": 1e-3}), bound)
    steps: dict[str, Callable[[], Any]] = {PYRO: lambda: svi.step(x)}
    for suffix, memory_format in FORMATS.items():

        def model(memory_format: Any = memory_format) -> VAE:
            return make().to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]

        batch = x.contiguous(memory_format=memory_format)
        steps[f"by hand{suffix}"] = hand_step(model(), batch, compiled=False)
        steps[f"by hand, compiled{suffix}"] = hand_step(model(), batch, compiled=True)
        for backend in ("eager", "inductor"):
            ours = channels_last(make()) if suffix else make()
            steps[f"ours, {backend}{suffix}"] = our_step(ours, batch, backend=backend)
    return steps


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_by_hand_is_the_pairs(name):
    """Both are estimates from one draw a datum: within 2 % of each other over 20 batches of 64."""
    torch.manual_seed(0)
    vae, x = MODELS[name]().train(), torch.rand(64, 1, 28, 28).round()
    with torch.no_grad(), pyro.validation_enabled(False):
        LOSSES[type(vae).__name__](vae, x)
        hand = torch.stack([LOSSES[type(vae).__name__](vae, x) for _ in range(20)]).mean()
        ours = torch.stack([Objective(vae)(x)["loss"] for _ in range(20)]).mean()
    assert abs(hand / ours - 1) < 0.02


@pytest.mark.parametrize("name", MODELS)
def test_compiled_code_is_the_graph(name, record):
    """Loss and gradients of compiled code and of the graph as it is, for the same noise: no timing, but minutes of compiling."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    vae, x = MODELS[name]().train(), torch.rand(32, 1, 28, 28).round()
    steps = {backend: compile_gradients(Objective(copy.deepcopy(vae)), x, backend=backend) for backend in ("eager", "inductor")}
    found = {}
    with own_noise():
        for backend, step in steps.items():
            torch.manual_seed(1)
            terms, gradients = step(x)
            found[backend] = (terms["loss"], torch.cat([gradient.flatten() for gradient in gradients]))
    (loss, gradient), (other, another) = found.values()
    off = {"loss": abs(float(other / loss) - 1), "gradient": float((another - gradient).norm() / gradient.norm())}
    record(f"compiled-{name.replace(' ', '-')}", {"off_by": off, "allowed": 1e-3})
    assert max(off.values()) < 1e-3


@pytest.mark.parametrize("batch_size", [32, 100, 256])
@pytest.mark.parametrize("name", MODELS)
def test_train_step(name, batch_size, record):
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.rand(batch_size, 1, 28, 28).round()
    with one_core(), pyro.validation_enabled(False):
        times = interleaved(candidates(MODELS[name], x), rounds=15, runs=4, warm_up=4)
    ms = {key: round(value["p50_us"] / 1000, 2) for key, value in times.items()}
    best = {start: min(value for key, value in ms.items() if key.startswith(start)) for start in ("by hand", "ours")}
    ratios = {"to_best_by_hand": round(best["ours"] / best["by hand"], 2), "to_svi": round(best["ours"] / ms[PYRO], 2)}
    record(f"train-step-{name.replace(' ', '-')}-{batch_size}", {"ms": ms, "ratios": ratios})
