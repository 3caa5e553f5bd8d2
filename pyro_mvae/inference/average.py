"""The moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def blend(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """average ← decay · average + (1 − decay) · model, in parameters and buffers.

    What is not a float is copied, and so is what was infinite: the range of an activation that was not seen yet.
    """
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(torch.where(mine.isfinite(), mine.lerp(theirs, 1 - decay), theirs) if mine.is_floating_point() else theirs)


def warmed(decay: float, step: int) -> float:
    """The decay of a moving average that forgets where it began: lower in the first steps.

    Example:
        >>> warmed(0.999, 0), warmed(0.999, 10**6)
        (0.1, 0.999)
    """
    return min(decay, (1 + step) / (10 + step))
