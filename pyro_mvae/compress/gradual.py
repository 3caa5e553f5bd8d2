"""Pruning in steps: a few channels go, the rest learn to do without, and so on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import pandas as pd
from torch import Tensor

from pyro_mvae.compress.prune import PruneChannels, inner_channels, kept_channels
from pyro_mvae.data import Data
from pyro_mvae.inference import fit
from pyro_mvae.models import VAE
from pyro_mvae.numbers import count

Model = TypeVar("Model", bound=VAE)


def prune_gradually(
    model: Model, data: Data | Tensor, by: PruneChannels, *, steps: int = 4, epochs: int = 1, **settings: Any
) -> tuple[Model, pd.DataFrame]:
    """Remove a share of the channels in several steps, and fit after each: what a channel is worth is asked again every time.

    After step k a share of (1 − ratio)^(k/steps) of the channels is left; with the scope "layer" each layer's number is rounded
    as `by` rounds, with "global" after the last step.

    Args:
        model: left as it is.
        by: how, and what share in the end.
        steps: how many.
        epochs: after each.
        settings: as `fit`.

    Returns: the pruned model, with a pass a step in its log, and the history of all steps, with the column `step`.

    Raises:
        ValueError: as `PruneChannels` and `fit`, for no steps, or ratios of single layers.

    Source: Zhu and Gupta, To Prune, or Not to Prune, 2017.

    Example:
        >>> import torch
        >>> from pyro_mvae.compress.prune import channels
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> model = VAE((1, 8, 8), 4, widths=(16,), hidden=16)
        >>> small, history = prune_gradually(model, images, PruneChannels(0.75), steps=2, batch_size=32)
        >>> channels(small)["encoder.body.0.0"], len(history)
        (4, 2)
    """
    count(steps, "steps")
    if not isinstance(by.ratio, float | int):
        raise ValueError(f"ratio is {by.ratio}, expected one number, which all layers come to in steps")
    images, before, histories = data.train.images if isinstance(data, Data) else data, inner_channels(model), []
    for step in range(steps):
        some = part_of(by, before, inner_channels(model), step=step, steps=steps)
        model = model if some is None else some(model, images)
        histories.append(fit(model, data, epochs=epochs, **settings).assign(step=step))
    return model, pd.concat(histories, ignore_index=True)


def part_of(by: PruneChannels, before: dict[str, int], now: dict[str, int], *, step: int, steps: int) -> PruneChannels | None:
    """What one step of several removes; None where rounding leaves all as it is."""
    assert isinstance(by.ratio, float | int)
    if by.scope == "global":
        last = step == steps - 1
        return replace(by, ratio=1 - (1 - by.ratio) ** (1 / steps), round_to=by.round_to if last else 1)
    so_far = 1 - (1 - by.ratio) ** ((step + 1) / steps)
    left = {name: kept_channels(n, ratio=so_far, round_to=by.round_to) for name, n in before.items()}
    ratios = {name: 1 - left[name] / n for name, n in now.items() if left[name] < n}
    return replace(by, ratio=ratios) if ratios else None
