"""From a teacher to one student of a size that was asked for: distil, prune to it, quantise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pyro_mvae.compress.prune import PruneChannels
from pyro_mvae.compress.quantize import Quantize
from pyro_mvae.data import Data
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.export.executorch import measured_bytes
from pyro_mvae.export.interleave import few_outputs
from pyro_mvae.inference.penalties import Distill, Round
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.models import MVAE, VAE
from pyro_mvae.nets.fold import CONVOLUTIONS, fold_batch_norm
from pyro_mvae.search.budget import KB, Budget

ROUND_TO = 4
RATIOS = [round(float(ratio), 2) for ratio in np.arange(0.1, 0.91, 0.05)]


@dataclass(frozen=True)
class Student:
    """What `make_student` made: the model, and its history over all stages (column `stage`)."""

    model: VAE
    history: pd.DataFrame


def make_student(
    teacher: VAE,
    data: Data,
    *,
    budget_kb: float = 64,
    student: VAE | None = None,
    kind: type[VAE] = MVAE,
    epochs: int = 8,
    batch_size: int = 64,
    lr: float = 4e-3,
    distill: float = 1.0,
    quantize: float = 1e-4,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    measure: Callable[[VAE], int] = measured_bytes,
    progress: Track = untracked,
) -> Student:
    """Make one small int8 VAE of a big one, under the objective (14), in three stages; `miniaturize` searches for the best.

    1. Distil (19): the student learns the data and the teacher's posteriors and likelihoods at once, for half of `epochs`: enough
       to tell which channels matter.
    2. Prune: by the smallest ratio at which the exported int8 files fit the budget, as measured by exporting; then go on as in 1,
       for `epochs`.
    3. Quantise (17): training goes on with the rounding in the loop, for half of `epochs`.

    Args:
        teacher: a fitted model; left as it is.
        budget_kb: size of int8 `encoder.pte` and `decoder.pte` together, in units of 1000 bytes.
        student: what to start from; when None, a model of class `kind`, somewhat larger than the budget.
        epochs: of the second and longest stage.
        distill, quantize: λ of (19) and of (17).
        folder: where each stage is kept, so that `resume` can go on with it.
        measure: size in bytes of a quantised model's files.

    Raises:
        ValueError: for a budget that is not above 0.
        BudgetError: when no ratio is enough; what was distilled is in `folder`.
        FloatingPointError, Interrupted: as `fit`.
    """
    Budget(kb=budget_kb)  # checks it
    student = student or student_for(teacher, budget_kb=budget_kb, kind=kind, seed=seed)
    teacher = folded(teacher)
    settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "resume": resume, "progress": progress}
    histories: dict[str, pd.DataFrame] = {}

    def stage(name: str, model: VAE, epochs: int, **more: Any) -> VAE:
        penalties = [Distill(distill, teacher), *([Round(quantize)] if name == "quantise" else [])]
        path = folder / f"student-{name}.safetensors" if folder else None
        model, histories[name] = fit_stage(
            model, data, path, epochs=epochs, penalties=penalties, description=f"Student, {name}", **settings, **more
        )
        return model

    half = max(epochs // 2, 1)
    student = stage("distil", student, half, lr=lr)
    ratio = ratio_within(student, budget_bytes=budget_kb * KB, measure=measure)
    student = stage("prune", PruneChannels(ratio=ratio)(student), epochs, lr=lr)
    student = stage("quantise", Quantize()(student), half, lr=lr / 8)
    return Student(student, pd.concat([history.assign(stage=name) for name, history in histories.items()], ignore_index=True))


def student_for(teacher: VAE, *, budget_kb: float, kind: type[VAE] = MVAE, seed: int = 0) -> VAE:
    """A model like the teacher in all but its nets, so wide that about a quarter of it has to be pruned."""
    like = kind(teacher.image_shape)

    def candidate(scale: float) -> VAE:
        *widths, hidden = (rounded(n * scale) for n in (*like.config["widths"], like.config["hidden"]))
        likelihood = teacher.config["likelihood"]
        return kind(teacher.image_shape, teacher.latent_dim, widths=widths, hidden=hidden, likelihood=likelihood)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for scale in (0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0):
            model = candidate(scale)
            if estimated_bytes(model) > 1.2 * budget_kb * KB:
                break
    return model


def rounded(size: float) -> int:
    """The nearest multiple of `ROUND_TO`, and that at least.

    Example:
        >>> rounded(1.0), rounded(13.9)
        (4, 12)
    """
    return max(math.floor(size / ROUND_TO + 0.5), 1) * ROUND_TO


def estimated_bytes(model: VAE) -> int:
    """About the size of a model's int8 files: a byte a weight, 12 bytes a channel, and what a `.pte` adds to layers and nets."""
    nets = [net for net, _ in model.deployable().values()]
    layers = [layer for net in nets for layer in net.modules() if isinstance(layer, CONVOLUTIONS)]
    plain = sum(layer.weight.numel() + 12 * layer.out_channels + 500 for layer in layers)
    moved = [layer for layer in layers if isinstance(layer, nn.ConvTranspose2d) and few_outputs(layer)]
    return 2500 * len(nets) + plain + sum(1350 + 4 * layer.out_channels * math.prod(layer.stride) for layer in moved)


def ratio_within(student: VAE, *, budget_bytes: float, measure: Callable[[VAE], int]) -> float:
    """The smallest ratio of `RATIOS` at which the student, pruned and quantised, is measured to fit the budget.

    The estimate, corrected by what it was wrong by at the last measurement, says which ratio to measure next.
    """
    estimates = {ratio: estimated_bytes(PruneChannels(ratio=ratio)(student)) for ratio in RATIOS}
    measured: dict[float, int] = {}
    correction = 0
    while True:
        fitting = [ratio for ratio in RATIOS if estimates[ratio] + correction <= budget_bytes]
        ratio = fitting[0] if fitting else RATIOS[-1]
        ratio = next((r for r in RATIOS if r >= ratio and measured.get(r, 0) <= budget_bytes), RATIOS[-1])
        if ratio in measured:
            break
        measured[ratio] = measure(calibrated(Quantize()(PruneChannels(ratio=ratio)(student))))
        correction = measured[ratio] - estimates[ratio]
    if measured[ratio] > budget_bytes:
        raise Budget(kb=budget_bytes / KB).unmet([{"kb": min(measured.values()) / KB}])
    return ratio


def calibrated(model: VAE) -> VAE:
    """A quantised model with some ranges, of noise: enough to be exported and weighed."""
    x = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0))
    model.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model.decoder(model.posterior(x).sample())
    return model.eval()


def folded(teacher: VAE) -> VAE:
    """A frozen copy with batch normalisation folded: the same function in fewer operations."""
    teacher = copy.deepcopy(teacher).eval()
    teacher.encoder, teacher.decoder = fold_batch_norm(teacher.encoder), fold_batch_norm(teacher.decoder)
    return teacher
