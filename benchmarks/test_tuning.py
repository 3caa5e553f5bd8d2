"""Dynamic hyper-parameters against the paper's fixed ones (Tables 7 and 8): steps until the same bound on test images.

pytest benchmarks/ -k tuning
"""

from __future__ import annotations

from typing import Any

import torch

from pyro_mvae import MVAE, Data, fit, load_data, tuning
from pyro_mvae.data import matching, num_batches
from pyro_mvae.inference.asvi import negative_bound
from pyro_mvae.train import initialized

FIXED = {"epochs": 5000, "batch_size": 100, "lr": 1e-3, "optimizer": torch.optim.RMSprop, "controllers": ()}  # Table 7
TUNED = {
    "epochs": 60,
    "batch_size": 32,
    "lr": 4e-3,
    "optimizer": torch.optim.RMSprop,
    "controllers": (tuning.OneCycle(rise=0.05), tuning.EarlyStopping(patience=20)),
    "keep": "best",
}
PROMPTS, SEEDS = ("face", "animal"), (0, 1)


def bounds(data: Data, *, seed: int, every: int, **how: Any) -> dict[str, Any]:
    """A run's bound on test images each so many epochs, by steps, with what it cost."""
    points: dict[int, float] = {}
    steps, seconds = 0, 0.0

    def watch(model: Any, row: dict[str, Any]) -> None:
        nonlocal steps, seconds
        steps += num_batches(len(data.train), batch_size=row["batch_size"])
        seconds += row["seconds"]
        if row["epoch"] % every == every - 1:
            points[steps] = negative_bound(model, data.test.images)

    fit(initialized(MVAE, data, seed=seed), data, callbacks=[watch], seed=seed, **how)
    return {"steps": steps, "seconds": round(seconds, 1), "points": points}


def first_below(points: dict[int, float], target: float) -> int | None:
    return next((steps for steps, bound in points.items() if bound <= target), None)


def test_tuning(measured, record):
    emoji = load_data("emoji")

    def measure(prompt: str, seed: int) -> dict[str, Any]:
        data = matching(emoji, prompt)
        fixed = bounds(data, seed=seed, every=20, **FIXED)
        tuned = bounds(data, seed=seed, every=2, **TUNED)
        best, last = min(fixed["points"].values()), fixed["points"][fixed["steps"]]
        return {
            "images": [len(data.train), len(data.test)],
            "fixed": {key: fixed[key] for key in ("steps", "seconds")} | {"best": round(best, 1), "last": round(last, 1)},
            "tuned": {key: tuned[key] for key in ("steps", "seconds")} | {"best": round(min(tuned["points"].values()), 1)},
            "steps_to_last": [first_below(run["points"], last) for run in (fixed, tuned)],
            "steps_to_best": [first_below(run["points"], best) for run in (fixed, tuned)],
        }

    cases = [{"prompt": prompt, "seed": seed} for prompt in PROMPTS for seed in SEEDS]
    record("tuning", {"model": "MVAE, discretised logistic", "rows": measured("tuning", cases, measure)})
