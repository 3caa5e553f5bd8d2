"""Dynamic hyper-parameters against the paper's fixed ones (Tables 7 and 8): steps until the same bound on test images.

pytest benchmarks/ -k tuning
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mvae import MVAE, Data, Split, fit, load_data, tuning
from pyro_mvae.inference.asvi import negative_bound
from pyro_mvae.train import initialized

FIXED = {"epochs": 5000, "batch_size": 100, "lr": 1e-3, "optimizer": torch.optim.RMSprop}  # Table 7
EVERY = 20
CONTROLLERS = (tuning.OneCycle(rise=0.05), tuning.WarmUp("kl", epochs=20, start=0.1))


def prompted(data: Data, prompt: str) -> Data:
    """The images whose caption or tags have a word."""

    def chosen(split: Split) -> Tensor:
        assert split.captions is not None
        assert split.tags is not None
        words = [
            set(" ".join([caption, *tags]).lower().split()) for caption, tags in zip(split.captions, split.tags, strict=True)
        ]
        return split.images[[i for i, found in enumerate(words) if prompt in found]]

    return Data(prompt, train=Split(chosen(data.train)), test=Split(chosen(data.test)), binarization="none")


@dataclass
class Watch:
    """A callback that measures the bound on test images every so many epochs."""

    test: Tensor
    every: int
    num_images: int

    def __post_init__(self) -> None:
        self.steps, self.seconds = 0, 0.0
        self.points: list[tuple[int, float]] = []

    def __call__(self, model: Any, row: dict[str, Any]) -> None:
        self.steps += -(-self.num_images // row["batch_size"])
        self.seconds += row["seconds"]
        if row["epoch"] % self.every == self.every - 1:
            self.points.append((self.steps, negative_bound(model, self.test)))


def first_below(points: list[tuple[int, float]], target: float) -> int | None:
    return next((steps for steps, bound in points if bound <= target), None)


@pytest.mark.parametrize("prompt", ["face"])
def test_tuning(prompt, record):
    data = prompted(load_data("emoji"), prompt)

    def run(every: int, **how: Any) -> Watch:
        watch = Watch(data.test.images, every, num_images=len(data.train))
        fit(initialized(MVAE, data), data.train.images, callbacks=[watch], **how)
        return watch

    fixed = run(EVERY, **FIXED, controllers=())
    best, last = min(bound for _, bound in fixed.points), fixed.points[-1][1]
    tuned = run(5, epochs=400, batch_size=32, lr=4e-3, optimizer=torch.optim.RMSprop, controllers=CONTROLLERS)
    figures: dict[str, Any] = {
        "data": f"emoji, prompt {prompt!r}: {len(data.train)} training and {len(data.test)} test images",
        "fixed": {"steps": fixed.steps, "seconds": round(fixed.seconds), "best": round(best, 1), "last": round(last, 1)},
        "fixed_steps_to_best": first_below(fixed.points, best),
        "tuned": {"steps": tuned.steps, "seconds": round(tuned.seconds), "best": round(min(b for _, b in tuned.points), 1)},
        "tuned_steps_to_fixed_best": first_below(tuned.points, best),
        "tuned_steps_to_fixed_last": first_below(tuned.points, last),
        "tuned_last": round(tuned.points[-1][1], 1),
    }
    record(f"tuning-{prompt}", figures)
