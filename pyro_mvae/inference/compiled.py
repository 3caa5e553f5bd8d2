"""A Pyro pair and its bound as one graph of tensor operations.

Pyro's message passing costs a few milliseconds a step, whatever the size of the nets. It need run only once: tracing it leaves a
graph that draws the same noise from the same seed, and gives the same loss and the same gradients, without it.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

Terms = dict[str, Tensor]


def compile_objective(objective: nn.Module, example: Tensor) -> Callable[[Tensor], Terms]:
    """Trace `objective`, once, into a graph for batches of any size.

    Parameters and buffers are inputs of the graph, looked up at each call: what an optimiser, a checkpoint or batch normalisation
    writes into them counts. Whether layers are in training mode is fixed when it is traced.

    Args:
        objective: a module, batch → named scalars; an `Objective`, say.
        example: a batch; only the shape of its data, their type and their memory format matter.

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
    layout = layout_of(example)
    with pyro.validation_enabled(False), torch.random.fork_rng(devices=[]):
        graph = make_fx(call, tracing_mode="fake", _allow_non_fake_inputs=True)(*stand_ins(state, example))
    return lambda x: graph(state, x.contiguous(memory_format=layout))


def layout_of(example: Tensor) -> torch.memory_format:
    """The memory format a batch is in: the graph has views in it that hold for that one only."""
    is_last = example.ndim == 4 and example.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def stand_ins(state: dict[str, Tensor], example: Tensor) -> tuple[Terms, Tensor]:
    """Tensors without values to trace with: only the size of the batch is a symbol, which is what makes tracing quick.

    The batch is given a size that no other dimension has, because a tracer takes equal sizes for one and the same.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    taken = {size for value in state.values() for size in value.shape} | set(example.shape[1:])
    size = next(n for n in range(2, len(taken) + 3) if n not in taken)
    batch = example.new_zeros(size, *example.shape[1:]).contiguous(memory_format=layout_of(example))
    free = StatelessSymbolicContext([DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (batch.ndim - 1))
    fake: Terms = {name: mode.from_tensor(value, static_shapes=True) for name, value in state.items()}
    return fake, mode.from_tensor(batch, symbolic_context=free)
