"""Pruning in steps: a few channels go, the rest learn to do without, and so on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import pandas as pd
from torch import Tensor

from pyro_mvae.compress.prune import PruneChannels
from pyro_mvae.data import Data
from pyro_mvae.inference import fit
from pyro_mvae.inference.numbers import count
from pyro_mvae.models import VAE

Model = TypeVar("Model", bound=VAE)


def prune_gradually(
    model: Model, data: Data | Tensor, by: PruneChannels, *, steps: int = 4, epochs: int = 1, **settings: Any
) -> tuple[Model, pd.DataFrame]:
    """Remove a share of the channels in several steps, and fit after each: what a channel is worth is asked again every time.

    Each step leaves the share (1 − ratio)^(1/steps) of what the one before left, rounded as `by` rounds.

    Args:
        model: left as it is.
        by: how, and what share in the end.
        steps: how many.
        epochs: after each.
        settings: as `fit`.

    Returns: the pruned model, with a pass a step in its log, and the history of all steps, with the column `step`.

    Raises:
        ValueError: as `PruneChannels` and `fit`, or for no steps.

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
    images = data.train.images if isinstance(data, Data) else data
    some, histories = replace(by, ratio=1 - (1 - by.ratio) ** (1 / steps)), []
    for step in range(steps):
        model = some(model, images)
        histories.append(fit(model, data, epochs=epochs, **settings).assign(step=step))
    return model, pd.concat(histories, ignore_index=True)
