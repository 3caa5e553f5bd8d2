"""The optimisers of θ and φ: any of torch's, and Adam as the paper writes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

OptimizerFactory = Callable[..., Optimizer]
"""Parameters and `lr=` → an optimiser: a class of `torch.optim`, or one with `functools.partial` for its other settings."""


class RootAdam(Optimizer):
    """Adam with ε inside the root, (23) to (28): θ ← θ − α m̂ / √(v̂ + ε).

    The usual form, `torch.optim.Adam`, has √v̂ + ε. The smallest step is α / √ε instead of α / ε, so that ε wants to be far
    smaller here: 1e-16 does what 1e-8 does there.

    Args:
        params: as any optimiser's.
        lr: α.
        betas: of the running means m (24) and v (25).
        eps: ε, above 0.

    Raises:
        ValueError: for an ε or rates that can't be.

    Example:
        >>> w = nn.Parameter(torch.tensor(1.0))
        >>> optimizer = RootAdam([w], lr=0.1, eps=3.0)
        >>> (w * 1.0).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)  # m̂ = v̂ = 1: a step of 0.1 / √(1 + 3)
        0.95
    """

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16):
        if not (lr >= 0 and eps > 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"lr is {lr}, betas are {betas}, eps is {eps}: expected lr ≥ 0, 0 ≤ beta < 1, eps > 0")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                state["step"] += 1
                m = state["exp_avg"].lerp_(parameter.grad, 1 - first)
                v = state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                root = (v / (1 - second ** state["step"])).add_(group["eps"]).sqrt_()
                parameter.addcdiv_(m, root, value=-group["lr"] / (1 - first ** state["step"]))
        return loss


def make_optimizers(
    model: nn.Module, *, optimizer: OptimizerFactory, guide_optimizer: OptimizerFactory, lr: float, guide_lr: float
) -> dict[str, Optimizer]:
    """An optimiser for θ, the likelihood side, and one for φ, the guide's: the parameters of the modules named `encoder…`.

    Raises:
        ValueError: when the optimiser can't take the parameters and `lr=`, or wants its loss evaluated again, as L-BFGS does.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> adam, sgd = torch.optim.Adam, torch.optim.SGD
        >>> both = make_optimizers(VAE((1, 8, 8), 4), optimizer=adam, guide_optimizer=sgd, lr=1e-3, guide_lr=1e-2)
        >>> [type(each).__name__ for each in both.values()]
        ['Adam', 'SGD']
    """
    sides: dict[str, list[nn.Parameter]] = {"theta": [], "phi": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            sides["phi" if name.startswith("encoder") else "theta"].append(parameter)
    chosen = {"theta": (optimizer, lr), "phi": (guide_optimizer, guide_lr)}
    return {side: made(*chosen[side], parameters) for side, parameters in sides.items() if parameters}


def check_factory(factory: Any) -> None:
    """Raise a ValueError for an optimiser that is made already."""
    if not callable(factory):
        raise ValueError(f"the optimiser is a {type(factory).__name__}: give its class, or functools.partial of it, not one made")


def made(factory: OptimizerFactory, lr: float, parameters: Iterable[nn.Parameter]) -> Optimizer:
    try:
        result = factory(parameters, lr=lr, **fused(factory))
    except TypeError as error:
        raise ValueError(
            f"the optimiser {described(factory)} can't be made: {error}; expected a class of torch.optim, "
            "or functools.partial of one"
        ) from error
    if isinstance(result, torch.optim.LBFGS):
        raise ValueError("L-BFGS evaluates its loss many times a step, with other noise each time: choose one of first order")
    if isinstance(result, torch.optim.SparseAdam):
        raise ValueError("SparseAdam is for sparse gradients, and these are dense: choose Adam")
    return result


def fused(factory: OptimizerFactory) -> dict[str, bool]:
    """One kernel for the whole update, where torch has it."""
    kind, given = (factory.func, set(factory.keywords)) if isinstance(factory, partial) else (factory, set())
    if kind is torch.optim.Adagrad or given & {"fused", "foreach", "capturable", "differentiable"}:
        return {}
    return {"fused": True} if "fused" in inspect.signature(kind).parameters else {}


def described(factory: OptimizerFactory) -> str:
    """What a checkpoint says of an optimiser, to know it again.

    Example:
        >>> described(torch.optim.Adam), described(partial(torch.optim.SGD, momentum=0.9))
        ('Adam', 'SGD(momentum=0.9)')
    """
    if isinstance(factory, partial):
        return f"{described(factory.func)}({', '.join(f'{name}={value!r}' for name, value in factory.keywords.items())})"
    return getattr(factory, "__name__", repr(factory))
