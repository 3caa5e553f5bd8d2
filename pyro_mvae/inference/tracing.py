"""Pyro's message passing, run once and left behind as a graph of tensor operations."""

from __future__ import annotations

import itertools
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyro
import pyro.infer.util
import pyro.ops.einsum
import pyro.util
import sympy
import torch
from pyro.poutine import subsample_messenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, _meta_registrations, fx
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.distributions import dirichlet as torch_dirichlet
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.overrides import TorchFunctionMode

# The shape of what these return, which torch does not know: no pair with a Gamma, StudentT or Binomial site could be traced.
SHAPES = torch.library.Library("aten", "IMPL", "Meta")
SHAPES.impl("_standard_gamma_grad", lambda value, output: torch.empty_like(value))
SHAPES.impl("_dirichlet_grad", lambda x, alpha, total: torch.empty_like(x))
SHAPES.impl("binomial", lambda count, prob, generator=None: torch.empty_like(count))

# Draws from Dirichlet and Beta distributions: torch's own with its gradient, as one operation that a graph can hold.
dirichlet = torch.library.custom_op(
    "pyro_mvae::dirichlet",
    lambda concentration: torch.ops.aten._sample_dirichlet(concentration),
    mutates_args=(),
    schema="(Tensor concentration) -> Tensor",
    tags=[torch.Tag.nondeterministic_seeded],
)
dirichlet.register_fake(torch.empty_like)
dirichlet.register_autograd(
    lambda ctx, gradient: torch_dirichlet._Dirichlet_backward(ctx.saved_tensors[0], ctx.saved_tensors[1], gradient),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output, *inputs),
)


def padded(x: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """`F.pad` with a constant, in parts: in torch's own a tracer makes a number of a batch's size.

    Example:
        >>> padded(torch.tensor([1, 2]), [1, -1], 7)
        tensor([7, 1])
    """
    for place in range(0, len(pad), 2):
        dim, before, after = x.ndim - 1 - place // 2, pad[place], pad[place + 1]
        kept = x.narrow(dim, max(-before, 0), x.shape[dim] - max(-before, 0) - max(-after, 0))
        ends = [x.new_full((*x.shape[:dim], max(count, 0), *x.shape[dim + 1 :]), value) for count in (before, after)]
        x = torch.cat([ends[0], kept, ends[1]], dim)
    return x


PADDING = [torch.ops.aten.im2col.default, torch.ops.aten.col2im.default]
IN_PARTS = {**get_decompositions(PADDING), torch.ops.aten.constant_pad_nd.default: padded}
"""Operations that pad, by simpler ones."""


class Untraceable(ValueError):
    """A pair that can't become a graph: what it does next depends on the value of a tensor."""


def trace(function: Callable[..., Any], *inputs: Any) -> fx.GraphModule:
    """Record what `function(*inputs)` computes, without computing it: the inputs are `stand_ins`, which have no values.

    Returns: the graph, with the arguments of `function`; other tensors that it used are the graph's attributes, the same objects.

    Raises:
        Untraceable: naming the line, and the sample site reached before it.
    """
    last = LastSite()
    try:
        with traceable(), last, own_noise():
            return make_fx(function, IN_PARTS, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    except Exception as error:
        place = line_of_user(error)
        if place is None and isinstance(error, ValueError):  # it was meant to be read
            raise Untraceable(str(error)) from error
        reached = f", after site {last.site!r}" if last.site else ""
        raise Untraceable(f"{place or 'in a library'}{reached}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What went wrong, in a line."""
    if isinstance(error, GuardOnDataDependentSymNode | DataDependentOutputException):
        return "what comes next depends on the value of a tensor, which is known only when the graph is run"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def own_noise() -> AbstractContextManager[None]:
    """Leaves the random states of the CPU and of all GPUs as they were."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


class LastSite(Messenger):
    """Remembers the sample site that was last reached."""

    def __init__(self) -> None:
        super().__init__()
        self.site = ""

    def _pyro_post_sample(self, msg: Any) -> None:
        self.site = msg["name"]


def line_of_user(error: BaseException) -> str | None:
    """The last line of a traceback that belongs to no library."""
    libraries = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib"))
    not_theirs = (*libraries, str(Path(__file__).parent), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(not_theirs)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else None


def stand_ins(state: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Tensors without values to trace with: only the size of the batch is a symbol, which is what makes tracing quick.

    The batch is the first dimension of the first input, and of each input whose first dimension is as long. It is given its own
    size or the next that no other dimension has, because a tracer takes equal sizes for one and the same.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    mode.cache_enabled = False  # with a symbol in a shape, looking it up takes longer than computing it
    length = batch_size(inputs)
    taken = {size for value in state.values() for size in value.shape}
    taken |= {size for value in inputs for size in value.shape[has_batch(value, length) :]}
    size = next(n for n in itertools.count(max(length or 0, 2)) if n not in taken)

    def stand_in(value: Tensor) -> Tensor:
        if not has_batch(value, length):
            return mode.from_tensor(value, static_shapes=True)
        batch = value.new_zeros(size, *value.shape[1:]).contiguous(memory_format=layout_of(value))
        free = StatelessSymbolicContext([DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (batch.ndim - 1))
        return mode.from_tensor(batch, symbolic_context=free)

    fake: dict[str, Tensor] = {name: mode.from_tensor(as_leaf(value), static_shapes=True) for name, value in state.items()}
    return fake, [stand_in(value) for value in inputs]


def as_leaf(value: Tensor) -> Tensor:
    """The same numbers as a tensor that is no parameter: nobody registers it, and no gradient of an earlier run hangs on it."""
    return value.detach().requires_grad_(value.requires_grad)


def assumptions(stand_in: Tensor) -> list[Callable[[int], bool]]:
    """What was taken for granted of the size of the batch while something was traced with its stand-in, as tests of a size.

    Most are of no account: which of two kernels torch would take. Some are a pair's own, which then does another thing beyond.
    """
    assert isinstance(stand_in, FakeTensor)
    env = stand_in.fake_mode.shape_env
    assert env is not None

    def holds(expression: Any) -> Callable[[int], bool]:
        return lambda n: bool(expression.xreplace(dict.fromkeys(expression.free_symbols, sympy.Integer(n))))

    return [holds(guard.expr) for guard in env.guards]


def batch_size(inputs: Sequence[Tensor]) -> int | None:
    """The first dimension of the first input that has one."""
    return next((value.shape[0] for value in inputs if value.ndim), None)


def has_batch(value: Tensor, length: int | None) -> bool:
    return value.ndim > 0 and value.shape[0] == length


def layout_of(example: Tensor) -> torch.memory_format:
    """The memory format a batch is in: the graph has views in it that hold for that one only."""
    is_last = example.ndim == 4 and example.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


@contextmanager
def traceable() -> Iterator[None]:
    """Set aside, while a pair is traced, what makes Pyro ask for the values of tensors."""

    def key(frame: CondIndepStackFrame) -> tuple[Any, ...]:
        return frame.name, frame.dim, str(frame.size), frame.counter  # the symbol of a size has no hash

    def apply(function: Any, *args: Any) -> Any:  # not a method of the recorder's: Python 3.10 makes no class method of one
        return recorder.apply(function, *args)

    with ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        recorder = stack.enter_context(AnySize())
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)))
        stack.enter_context(mock.patch.object(subsample_messenger, "len", lambda values: values.shape[0], create=True))
        stack.enter_context(mock.patch.object(IndepMessenger, "__iter__", counted))
        for name in ("torch_isnan", "torch_isinf"):
            stack.enter_context(mock.patch.object(pyro.util, name, return_value=False))
        stack.enter_context(mock.patch.object(CondIndepStackFrame, "_key", key))
        stack.enter_context(mock.patch.object(pyro.ops.einsum, "contract_expression", contract_expression_of_a_size))
        stack.enter_context(mock.patch.object(torch._C, "_infer_size", torch.broadcast_shapes))
        stack.enter_context(mock.patch.object(torch_dirichlet._Dirichlet, "apply", dirichlet))
        stack.enter_context(mock.patch.object(pyro.infer.util, "torch", InATrace()))
        stack.enter_context(mock.patch.object(_meta_registrations, "_linalg_broadcast_batch_dims_name", broadcast_batches))
        stack.enter_context(mock.patch.object(pyro.infer.util.Dice, "compute_expectation", with_fixed_shapes))
        yield


def broadcast_batches(a: Tensor, b: Tensor, name: str | None) -> tuple[Tensor, Tensor]:
    """Two stacks of matrices with the same batch dimensions, as torch has it, which takes a list and a tuple for different."""
    if name:
        _meta_registrations.linearSolveCheckInputs(a, b, name)
    sizes = _meta_registrations._linalg_broadcast_batch_dims(a, b)
    first, second = (x if tuple(size) == tuple(x.shape) else x.expand(size) for x, size in zip((a, b), sizes, strict=True))
    return first, second


class InATrace:
    """`torch`, which says that a trace is going on: Pyro then does not ask whether all of a mask is true."""

    _C = SimpleNamespace(_get_tracing_state=lambda: True)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_iterate = IndepMessenger.__iter__
_apply = torch.autograd.Function.__dict__["apply"].__func__


def counted(plate: Any) -> Iterator[Any]:
    """The steps of a sequential plate; Python's numbers where it is not subsampled, instead of numbers read from a tensor."""
    if isinstance(plate.size, int) and getattr(plate, "subsample_size", plate.size) == plate.size:
        plate._indices = range(plate.size)
    return _iterate(plate)


class AnySize(TorchFunctionMode):
    """Keeps the size of a batch a symbol, and what has no gradient without one.

    `x.squeeze()` takes away dimensions that are 1 for good, never the batch's, which is 1 only now and then. `len(x)`, which
    Python wants to be a number, is refused. A graph remembers no `no_grad`: what is made under it is detached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.functions = 0

    def apply(self, function: Any, *args: Any) -> Any:
        """`torch.autograd.Function.apply`: torch runs its forward under a `no_grad` that is not the pair's."""
        self.functions += 1
        try:
            return _apply(function, *args)
        finally:
            self.functions -= 1

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.Tensor.__len__ and isinstance(args[0].shape[0], torch.SymInt):
            raise TypeError("len() makes the size of a batch a number; write .shape[0]")
        if func in (torch.Tensor.squeeze, torch.squeeze) and len(args) == 1 and not kwargs:
            ones = tuple(d for d, size in enumerate(args[0].shape) if isinstance(size, int) and size == 1)
            return args[0].squeeze(ones)
        result = func(*args, **(kwargs or {}))
        gradient = torch.is_grad_enabled() or self.functions
        if gradient or not isinstance(result, Tensor) or any(result is argument for argument in args):
            return result
        return result.detach()


_contract_expression = pyro.ops.einsum.contract_expression


def contract_expression_of_a_size(equation: str, *shapes: Sequence[Any]) -> Any:
    """The order of contraction that suits the size that the batch has while it is traced; right for any other."""
    return _contract_expression(
        equation, *(tuple(getattr(getattr(n, "node", None), "hint", n) for n in shape) for shape in shapes)
    )


_compute_expectation = pyro.infer.util.Dice.compute_expectation


def with_fixed_shapes(dice: Any, costs: Any) -> Any:
    with MaskedToZero():
        return _compute_expectation(dice, costs)


class MaskedToZero(TorchFunctionMode):
    """Elements that a mask leaves out become 0 instead of being taken away: the same sum, from a tensor whose shape is known."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in (torch.Tensor.masked_select, torch.masked_select):
            value, mask = args
            return torch.where(mask, value, 0.0).flatten()
        return func(*args, **(kwargs or {}))
