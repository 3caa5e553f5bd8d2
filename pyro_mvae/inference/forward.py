"""What the nets of a model do while a bound is computed, besides what they say."""

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
