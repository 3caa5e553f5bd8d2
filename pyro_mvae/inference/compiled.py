"""A Pyro pair and its bound as one graph of tensor operations.

Pyro's message passing costs a few milliseconds a step, whatever the size of the nets. It need run only once: tracing it leaves a
graph that draws the same noise from the same seed, and gives the same loss and the same gradients, without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_mvae.inference.surrogate import differentiable_loss
from pyro_mvae.inference.tracing import (
    Untraceable,
    as_leaf,
    assumptions,
    batch_size,
    has_batch,
    layout_of,
    own_noise,
    reason,
    stand_ins,
    trace,
)
from pyro_mvae.inference.undone import Undone, restored

Terms = dict[str, Tensor]
Graph = Callable[[Tensor], tuple[Terms, list[Tensor]]]
BACKENDS = ("inductor", "eager")
logger = logging.getLogger(__name__)


def compile_objective(objective: nn.Module, example: Tensor) -> Callable[[Tensor], Terms]:
    """Trace `objective`, once, into a graph for batches of any size.

    Parameters and buffers are inputs of the graph, looked up at each call: what an optimiser, a checkpoint or batch normalisation
    writes into them counts. Whether layers are in training mode is fixed when it is traced.

    Args:
        objective: a module, batch → named scalars; an `Objective`, say.
        example: a batch; only the shape of its data, their type and their memory format matter.

    Returns: a function, batch → named scalars, differentiable with respect to the parameters.

    Raises:
        Untraceable: when what it does depends on the value of a tensor.

    Example:
        >>> from pyro_mvae.inference.objective import Objective
        >>> from pyro_mvae.models import VAE
        >>> objective = Objective(VAE((1, 8, 8), 4, widths=(4,), hidden=8))
        >>> graph = compile_objective(objective, torch.zeros(4, 1, 8, 8))
        >>> graph(torch.rand(3, 1, 8, 8).round())["loss"].backward()
    """

    def call(state: Terms, x: Tensor) -> Terms:
        return functional_call(objective, state, (x,))

    state = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    fake, (x,) = stand_ins(state, [example])
    graph = trace(call, fake, x)
    return lambda x: graph(state, x.contiguous(memory_format=layout_of(example)))


def compile_gradients(objective: nn.Module, example: Tensor, *, backend: str = "eager") -> Graph:
    """Trace `objective` and the gradients of its term "loss" into one graph: what a training step needs, and nothing else.

    The backward pass is part of the graph, so that nothing is recorded while it runs, and what no gradient needs is not computed.

    Args:
        objective, example: as `compile_objective`.
        backend: "eager" runs the graph as it is, "inductor" compiles it at the first call. "pyro" traces nothing and has Pyro
            pass its messages at each call: slower from then on, ready at once, and a debugger sees the pair.

    Returns: a function, batch → named scalars, and a gradient for each of `objective.parameters()` that wants one.

    Raises:
        Untraceable: when what it does depends on the value of a tensor; not by "pyro".

    Example:
        >>> from pyro_mvae.inference.objective import Objective
        >>> from pyro_mvae.models import VAE
        >>> objective = Objective(VAE((1, 8, 8), 4, widths=(4,), hidden=8))
        >>> terms, gradients = compile_gradients(objective, torch.zeros(4, 1, 8, 8))(torch.rand(3, 1, 8, 8).round())
        >>> [gradient.shape for gradient in gradients] == [parameter.shape for parameter in objective.parameters()]
        True
    """
    parameters = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}

    def call(state: Terms, x: Tensor) -> tuple[Terms, list[Tensor]]:
        terms = functional_call(objective, state, (x,))
        gradients = torch.autograd.grad(terms["loss"], [state[name] for name in parameters], materialize_grads=True)
        return {name: term.detach() for name, term in terms.items()}, list(gradients)

    state = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    if backend == "pyro":
        return pyro.validation_enabled(False)(lambda x: call({name: as_leaf(value) for name, value in state.items()}, x))
    fake, (x,) = stand_ins(state, [example])
    graph = trace(call, fake, x)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    run = on_backend(graph, backend)

    @torch.no_grad()
    def gradients(x: Tensor) -> tuple[Terms, list[Tensor]]:
        return run(state, x.contiguous(memory_format=layout_of(example)))

    return gradients


def on_backend(graph: fx.GraphModule, backend: str) -> Callable[..., Any]:
    """The graph as it is, or compiled, with the same noise from a seed as Pyro draws."""
    return graph if backend == "eager" else Announced(torch.compile(graph, dynamic=True, options={"fallback_random": True}))


class Announced:
    """A compiled function that logs how long its first call took: that is when it is compiled."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.called = function, False

    def __call__(self, *args: Any) -> Any:
        if self.called:
            return self.function(*args)
        started = time.perf_counter()
        result = self.function(*args)
        self.called = True
        logger.info("compiled in %.1f s", time.perf_counter() - started)
        return result


def compile_elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    example: Sequence[Any],
    elbo: ELBO | None = None,
    backend: str = "inductor",
    fallback: bool = False,
) -> CompiledElbo | EagerElbo:
    """Turn any Pyro pair and bound into one graph: the loss and the gradients of `SVI.step`, without Pyro's share of its time.

    The pair is run by Pyro with `example`, which makes its parameters as the first step of `SVI` would and changes nothing
    else; then it is traced, and the graph is held against Pyro's own loss for the same noise. The parameters are those of Pyro's
    store, so that any optimiser works on them, and so does `pyro.get_param_store().save`.

    Args:
        model, guide: any Pyro pair; whether their modules are in training mode is fixed here.
        example: arguments of both, as a tuple. The first dimension of the first tensor is the batch's: it may change from call
            to call, together with that of every tensor as long. All else must stay: other dimensions, types, what is no tensor.
        elbo: `Trace_ELBO()` when None; any bound of Pyro's, such as `TraceMeanField_ELBO`, `TraceEnum_ELBO` or `RenyiELBO`.
        backend: "inductor", for `torch.compile`, which needs a C++ compiler, or "eager", which runs the graph as it is.
        fallback: whether a pair that can't be traced is left to Pyro, with a warning in the log, instead of being an error.

    Returns: a function of the pair's arguments; its result is the loss, differentiable with respect to `.parameters`.

    Raises:
        Untraceable: a ValueError that names the line, when what the pair does next depends on the value of a tensor.
        ValueError: for a backend that does not exist, a pair without parameters, or an example without a tensor.

    Example:
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyro_mvae.models import VAE
        >>> vae, x = VAE((1, 8, 8), 4, widths=(4,), hidden=8), torch.rand(5, 1, 8, 8).round()
        >>> loss = compile_elbo(vae.model, vae.guide, elbo=TraceMeanField_ELBO(), example=(x,), backend="eager")
        >>> optimizer = torch.optim.Adam(loss.parameters.values(), lr=1e-3)
        >>> loss(x[:3]).backward()
        >>> optimizer.step()
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of: {', '.join(BACKENDS)}")
    if not callable(model) or not callable(guide):
        raise ValueError(f"expected a model and a guide that can be called, got {kind(model)} and {kind(guide)}")
    if elbo is not None and not isinstance(elbo, ELBO):
        raise ValueError(f"elbo is {kind(elbo)}, expected one of Pyro's bounds, made: Trace_ELBO(), say")
    if not isinstance(example, tuple | list):
        raise ValueError(f"example is {kind(example)}, expected a tuple of the pair's arguments, such as example=(x,)")
    pair = EagerElbo(model, guide, Trace_ELBO() if elbo is None else elbo)
    expected = pair.rehearse(example)
    try:
        return CompiledElbo(pair, tuple(example), expected=expected, backend=backend)
    except Untraceable as error:
        advice = "write the choice with tensors (torch.where), or give fallback=True to leave the pair to Pyro"
        if not fallback:
            raise Untraceable(f"{error}; {advice}") from error
        logger.warning("not compiled, left to Pyro: %s", error)
        return pair


Outcome = tuple[Tensor, dict[str, Tensor]]
"""A loss, and its gradients by the names of the parameters."""


class EagerElbo:
    """A pair and its bound as Pyro runs them, with the loss as a differentiable tensor.

    `parameters` are the unconstrained tensors, by their names in Pyro's store.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], elbo: ELBO):
        self.model, self.guide, self.elbo = model, guide, elbo
        self.parameters: dict[str, Tensor] = {}
        self.written: list[Tensor] = []

    def __call__(self, *args: Any) -> Tensor:
        return differentiable_loss(self.elbo, self.model, self.guide, *args)

    def rehearse(self, example: Sequence[Any]) -> Outcome:
        """Run the pair, once for its parameters to be made and once for what comes of it; all else is put back."""
        with own_noise(), Undone() as undone, pyro.poutine.trace(param_only=True) as used:
            self(*example)
        store = pyro.get_param_store()
        self.written = undone.written
        self.parameters = {name: store._params[name] for name in used.trace.nodes if name in store}
        return self.outcome(example)

    def outcome(self, args: Sequence[Any]) -> Outcome:
        """Loss and gradients from noise of seed 0; all else is put back."""
        with own_noise(), Undone():
            torch.manual_seed(0)
            return outcome_of(self(*args), self.parameters)


class CompiledElbo:
    """A pair and its bound as one graph; see `compile_elbo`.

    Attributes:
        parameters: the unconstrained tensors that the loss depends on, by their names in Pyro's store.
        graph: the operations, before a backend works on them: `print(loss.graph.code)` shows them.
        seconds: how long tracing took; a backend compiles at the first call and the first `backward`.
    """

    def __init__(self, pair: EagerElbo, example: tuple[Any, ...], *, expected: Outcome, backend: str):
        started = time.perf_counter()
        leaves, self.spec = tree_flatten(example)
        self.example = [leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        length = batch_size(tensors)
        if not length:
            raise ValueError("the example has no tensor with a batch dimension: give the pair its data as arguments")
        self.length, self.layouts = length, [layout_of(value) for value in tensors]

        def call(*values: Tensor) -> Tensor:
            given = iter(values)
            return pair(*tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], self.spec))

        self.parameters = pair.parameters
        self.refused: list[tuple[Callable[[int], bool], str]] = []
        with restored(pair.written):
            fake = stand_ins(self.parameters, tensors)[1]
            self.graph: fx.GraphModule = trace(call, *fake)
            difference = self.difference(example, expected)
            if difference:
                raise Untraceable(difference)
            self.try_other_sizes(pair, example, assumptions(next(value for value in fake if value.ndim)))
        self.seconds = time.perf_counter() - started
        logger.info("traced %d operations in %.1f s", len(self.graph.graph.nodes), self.seconds)
        self.run = on_backend(self.graph, backend)

    def __call__(self, *args: Any) -> Tensor:
        return self.run(*self.inputs(args))

    def inputs(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The tensors among the arguments; ValueError where they are not like the example, or of a size that can't be."""
        leaves, spec = tree_flatten(args)
        if spec != self.spec:
            raise ValueError(f"expected arguments like those of the example, {self.described()}, got {len(args)} that are not")
        tensors, lengths = [], set()
        for leaf, like in zip(leaves, self.example, strict=True):
            if not isinstance(like, Tensor):
                if leaf != like:
                    raise ValueError(f"an argument was {like!r} when the pair was traced and is {leaf!r} now: compile it again")
                continue
            free = has_batch(like, self.length)
            if not isinstance(leaf, Tensor) or leaf.dtype != like.dtype or leaf.shape[free:] != like.shape[free:]:
                raise ValueError(
                    f"expected {self.wanted(like)}, got {kind(leaf)}: compile the pair again for data of another kind"
                )
            tensors.append(leaf)
            lengths |= {leaf.shape[0]} if free else set()
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(f"the batches of the arguments have the lengths {sorted(lengths)}, expected one, and 1 or more")
        for length in lengths:
            for refuses, why in self.refused:
                if refuses(length):
                    raise ValueError(f"a batch of {length} can't be computed by this graph: {why}")
        return [value.contiguous(memory_format=layout) for value, layout in zip(tensors, self.layouts, strict=True)]

    def wanted(self, like: Tensor) -> str:
        free = has_batch(like, self.length)
        return f"{like.dtype} of shape ({', '.join(map(str, ('n', *like.shape[1:]) if free else like.shape))})"

    def described(self) -> str:
        return ", ".join(self.wanted(like) if isinstance(like, Tensor) else repr(like) for like in self.example)

    def difference(self, args: tuple[Any, ...], expected: Outcome) -> str | None:
        """What the graph gives another value for than Pyro, for the same noise; None when all agrees."""
        try:
            with own_noise():
                torch.manual_seed(0)
                loss, gradients = outcome_of(self.graph(*self.inputs(args)), self.parameters)
        except RuntimeError as error:
            return f"the graph can't be run where Pyro can: {reason(error)}; the size of the batch decides what the pair does"
        if not torch.isclose(loss, expected[0], rtol=1e-4, atol=1e-6, equal_nan=True):
            return (
                f"the graph gives {float(loss):.6g} where Pyro gives {float(expected[0]):.6g} for the same noise: the pair uses "
                "chance or state from outside of torch, or the size of the batch decides what it does"
            )
        largest = max((float(value.norm()) for value in expected[1].values()), default=0.0)
        for name, gradient in gradients.items():
            theirs = expected[1][name]
            if float((gradient - theirs).norm()) > 1e-3 * float(theirs.norm()) + 1e-5 * largest:
                return (
                    f"the graph's gradient of {name!r} is not Pyro's for the same noise: the pair has a gradient of its own, "
                    "such as an autograd.Function, which a graph does not keep"
                )
        return None

    def try_other_sizes(self, pair: EagerElbo, example: tuple[Any, ...], assumed: Sequence[Callable[[int], bool]]) -> None:
        """Find the sizes of batches for which the pair does another thing than the graph, and refuse them from now on.

        One is tried, and a size beyond each thing that was taken for granted of the batch while tracing; what holds up to sizes
        too large to try is refused beyond them.
        """
        for refuses, size in [(one, 1), *((negated(holds), first_beyond(holds)) for holds in assumed)]:
            if size is None:
                untried = "it is far from the example's, and what was taken for granted of that does not hold: give one like it"
                self.refused.append((refuses, untried))
                continue
            if size == self.length:
                continue
            batch = self.resized(example, size)
            try:
                difference = self.difference(batch, pair.outcome(batch))
            except Exception as error:  # whatever the pair raises
                # with other data of that size it may not
                difference = f"Pyro refuses it, {reason(error)}" if size == 1 else None
            if difference:
                self.refused.append((refuses, difference))

    def resized(self, example: tuple[Any, ...], size: int) -> tuple[Any, ...]:
        """The example with a batch of another size, its data repeated if need be."""
        places = torch.arange(size) % self.length

        def resize(leaf: Any) -> Any:
            return leaf[places.to(leaf.device)] if isinstance(leaf, Tensor) and has_batch(leaf, self.length) else leaf

        leaves, spec = tree_flatten(example)
        return tree_unflatten([resize(leaf) for leaf in leaves], spec)


def outcome_of(loss: Tensor, parameters: Mapping[str, Tensor]) -> Outcome:
    """A loss and its gradients, without the graph behind them."""
    wanted = {name: value for name, value in parameters.items() if value.requires_grad}
    if not loss.requires_grad:
        return loss.detach(), {name: torch.zeros_like(value) for name, value in wanted.items()}
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(wanted, gradients, strict=True))


def one(size: int) -> bool:
    return size == 1


def negated(holds: Callable[[int], bool]) -> Callable[[int], bool]:
    return lambda size: size > 1 and not holds(size)


def first_beyond(holds: Callable[[int], bool], *, limit: int = 1024) -> int | None:
    """The smallest batch that something does not hold for; None when there is none up to a limit."""
    return next((size for size in range(2, limit) if not holds(size)), None)


def kind(value: Any) -> str:
    """What a value is, in a few words."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
