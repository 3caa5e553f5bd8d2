"""Nets as they are used, not as they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


@contextmanager
def evaluating(net: Net) -> Iterator[Net]:
    """A net in evaluation mode; whatever happens, it comes back to the mode that it was in.

    Example:
        >>> net = nn.Dropout()
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    was_training = net.training
    try:
        yield net.eval()
    finally:
        net.train(was_training)
