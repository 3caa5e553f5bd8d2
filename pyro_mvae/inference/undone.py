"""Steps that leave no trace: what they write into tensors is put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


class Undone(TorchDispatchMode):
    """Puts back, on leaving, what was written into tensors: running statistics, counters."""

    def __init__(self) -> None:
        super().__init__()
        self.before = WeakIdKeyDictionary()  # what dies during the step needs no putting back

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            # the schema of batch normalisation does not say what it writes
            written = argument.is_write or argument.name in ("running_mean", "running_var")
            if written and isinstance(value, Tensor):
                self.before.setdefault(value, value.clone())
        return func(*args, **(kwargs or {}))

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        put_back(self.before.items())

    @property
    def written(self) -> list[Tensor]:
        """The tensors that were written into."""
        return list(self.before)


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give tensors back the values that they have on entering."""
    before = [(value, value.clone()) for value in tensors]
    try:
        yield
    finally:
        put_back(before)


@torch.no_grad()
def put_back(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    for value, before in values:
        value.copy_(before)
