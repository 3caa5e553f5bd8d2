"""How nets run while an objective is computed: changes that are undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import Tensor, nn

Forward = Callable[..., Any]


@contextmanager
def changed(nets: Iterable[nn.Module], change: Callable[[Forward], Forward]) -> Iterator[None]:
    """In here the `forward` of each net is what `change` makes of it."""
    with ExitStack() as stack:
        for net in nets:
            stack.enter_context(mock.patch.object(net, "forward", change(net.forward)))
        yield


@contextmanager
def encoded_once(model: nn.Module, x: Tensor) -> Iterator[None]:
    """What the encoders say of `x` is computed once in here, for whoever asks; those are the nets named `encoder…`."""

    def remembering(forward: Forward) -> Forward:
        said: list[Any] = []

        def run(*args: Any, **kwargs: Any) -> Any:
            if kwargs or len(args) != 1 or args[0] is not x:
                return forward(*args, **kwargs)
            if not said:
                said.append(forward(x))
            return said[0]

        return run

    with changed((net for name, net in model.named_children() if name.startswith("encoder")), remembering):
        yield


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """What is normalised by its batch in here leaves no trace in the running statistics: those are of pictures as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
