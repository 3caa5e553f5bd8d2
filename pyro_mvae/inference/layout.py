"""How tensors lie in memory, and what is put into the format of something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_mvae.nets.conv import channels_last

LAYOUTS = ("channels_last", "contiguous")


def laid_out(model: nn.Module, layout: str) -> nn.Module:
    """The model, its parameters put into a memory format, in place."""
    if layout == "channels_last":
        return channels_last(model)
    return model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def in_layout(x: Tensor, layout: str) -> Tensor:
    """A batch in a memory format."""
    last = layout == "channels_last" and x.ndim == 4
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory format of `parameter`: fused optimisers go through both by address.

    Formats differ in the strides of dimensions of 1 without differing in memory; then nothing is copied.
    """
    if value.stride() == parameter.stride():
        return value
    strides = zip(parameter.shape, parameter.stride(), value.stride(), strict=True)
    if all(ours == theirs for size, ours, theirs in strides if size > 1):
        return value.as_strided(parameter.size(), parameter.stride())
    return torch.empty_like(parameter).copy_(value)


def placed(parameter: Tensor, value: Any) -> Any:
    """An entry of an optimiser's state as one of its own, whatever becomes of `value`."""
    if not isinstance(value, Tensor):
        return value
    return like(parameter, value.clone()) if value.shape == parameter.shape else value.clone()
