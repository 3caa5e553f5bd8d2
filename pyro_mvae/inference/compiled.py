"""A Pyro pair and its bound as one graph of tensor operations.

Pyro's message passing costs a few milliseconds a step, whatever the size of the nets. It need run only once: tracing it leaves a
graph that draws the same noise from the same seed, and gives the same loss and the same gradients, without it.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

Terms = dict[str, Tensor]


def compile_objective(objective: nn.Module, example: Tensor) -> Callable[[Tensor], Terms]:
    """Trace `objective`, once, into a graph for batches of any size.

    Parameters and buffers are inputs of the graph, looked up at each call: what an optimiser, a checkpoint or batch normalisation
    writes into them counts. Whether layers are in training mode is fixed when it is traced.

    Args:
        objective: a module, batch → named scalars; an `Objective`, say.
        example: a batch; only the shape of its data and its type matter.

    Returns: a function, batch → named scalars, differentiable with respect to the parameters.

    Example:
        >>> from pyro_mvae.inference.objective import Objective
        >>> from pyro_mvae.models import VAE
        >>> objective = Objective(VAE((1, 8, 8), 4, widths=(4,), hidden=8))
        >>> graph = compile_objective(objective, torch.zeros(4, 1, 8, 8))
        >>> graph(torch.rand(3, 1, 8, 8).round())["loss"].backward()
    """

    def call(state: dict[str, Tensor], x: Tensor) -> Terms:
        return functional_call(objective, state, (x,))

    state = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    with pyro.validation_enabled(False), torch.random.fork_rng(devices=[]):
        graph = make_fx(call, tracing_mode="symbolic", _allow_non_fake_inputs=True)(untouched(state), distinct(example, state))
    return lambda x: graph(state, x)


def untouched(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies to trace with, so that tracing doesn't move batch statistics."""
    return {name: value.detach().clone().requires_grad_(value.requires_grad) for name, value in state.items()}


def distinct(example: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A batch whose size is no other dimension's: the tracer takes equal sizes for one and the same."""
    taken = {size for value in state.values() for size in value.shape} | set(example.shape[1:])
    size = next(n for n in range(2, len(taken) + 3) if n not in taken)
    return example.new_zeros(size, *example.shape[1:])
