"""How long an epoch of a student takes, and whether its teacher is worth the time."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyro_mvae.atomic import write_text
from pyro_mvae.data import Data
from pyro_mvae.data.images import Split
from pyro_mvae.inference import fit
from pyro_mvae.inference.penalties import Distill, Penalty, Tighten
from pyro_mvae.inference.tracing import reason
from pyro_mvae.models import VAE
from pyro_mvae.search.plans import Plan

logger = logging.getLogger(__name__)

TIMED_IMAGES = 2560
BATCH_SIZE, MANY = 64, 25_000
WORTH_COMPILING = 150.0
"""Seconds of training from which on a step is timed compiled too, which takes up to a minute."""
DEAR = 2.0
"""How many times as long an epoch with the teacher may take: where it takes longer, more epochs teach a student more."""


@dataclass(frozen=True)
class Pace:
    """How a student is trained.

    Attributes:
        seconds: of an epoch.
        distilled: whether it learns from its teacher too.
        precision, compile: as of `fit`.
        threads: on how many an epoch takes as long.
    """

    seconds: float
    distilled: bool
    precision: str = "float32"
    compile: str = "auto"
    threads: int = 1

    def epochs(self, seconds: float) -> int:
        """As many as there is time for, and one at least.

        Example:
            >>> Pace(2.0, distilled=False).epochs(25.0)
            12
        """
        return max(int(seconds / self.seconds), 1)


def paces(
    plans: Sequence[Plan],
    teachers: dict[int, VAE],
    data: Data,
    out: Path,
    *,
    distill: float,
    importance_samples: int = 1,
    precisions: Sequence[str] = ("float32",),
    threads: int = 1,
) -> dict[Plan, Pace]:
    """The pace of each plan on so many threads, measured once and kept in `paces.json`; that of a lesson, with the first plan.

    Of several precisions a plan's is the one that it is faster in: depthwise convolutions are slower in bfloat16.
    """
    first = plans[0]

    def seconds(name: str, plan: Plan, weight: float, precision: str, *, besides: float = 0.0) -> float:
        teacher = teachers[plan.latent_dim]
        how: dict[str, Any] = {"penalties": lessons(teacher, weight, importance_samples), "precision": precision}
        how["threads"] = threads
        return once(out, kept_as(name, **how), lambda: max(seconds_an_epoch(plan, teacher, data, **how) - besides, 0.0))

    def fastest(plan: Plan) -> Pace:
        taken = {precision: seconds(plan.name, plan, 0.0, precision) for precision in precisions}
        precision = min(taken, key=taken.__getitem__)
        return Pace(taken[precision], distilled=False, precision=precision, threads=threads)

    alone = {plan: fastest(plan) for plan in plans}
    if not distill or teachers[first.latent_dim].point:
        return alone
    lesson = seconds("lesson", first, distill, alone[first].precision, besides=alone[first].seconds)
    return {plan: with_lesson(pace, lesson) for plan, pace in alone.items()}


def with_lesson(pace: Pace, lesson: float) -> Pace:
    """The pace of a student whose epoch takes some seconds more with its teacher, who is left out where that is too many.

    Example:
        >>> slow, fast = Pace(3.0, distilled=False), Pace(1.0, distilled=False)
        >>> with_lesson(slow, 2.0) == Pace(5.0, distilled=True), with_lesson(fast, 2.0) == fast
        (True, True)
    """
    distilled = pace.seconds + lesson <= DEAR * pace.seconds
    return replace(pace, seconds=pace.seconds + lesson, distilled=True) if distilled else pace


def pace_within(
    seconds: float,
    plan: Plan,
    teacher: VAE,
    data: Data,
    out: Path,
    *,
    pace: Pace,
    distill: float,
    importance_samples: int = 1,
    threads: int = 1,
) -> Pace:
    """The pace of a plan in a round of so many seconds, on as many threads as it has there.

    Compiled, where there is time for it and a step is shorter then.
    """
    penalties = lessons(teacher, distill if pace.distilled else 0.0, importance_samples)

    def taken(compile: str) -> float:
        how: dict[str, Any] = {"precision": pace.precision, "threads": threads, "compile": compile}
        return once(out, kept_as(plan.name, **how), lambda: seconds_an_epoch(plan, teacher, data, penalties=penalties, **how))

    if threads != pace.threads:
        pace = replace(pace, seconds=taken("eager"), threads=threads)
    if seconds < WORTH_COMPILING:
        return pace
    compiled = taken("inductor")
    if compiled < pace.seconds:
        return replace(pace, seconds=compiled, compile="inductor")
    return replace(pace, compile="eager")


def kept_as(name: str, *, precision: str, threads: int, compile: str = "eager", **others: Any) -> str:
    """What `paces.json` calls the pace of a student, or of a lesson.

    Example:
        >>> kept_as("lesson", precision="float32", threads=2)
        'lesson, float32, 2 threads, eager'
    """
    return f"{name}, {precision}, {threads} threads, {compile}"


def once(out: Path, name: str, measure: Callable[[], float]) -> float:
    """What `paces.json` in the folder of a search knows of a name, measured where it knows nothing."""
    path = out / "paces.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if name not in known:
        known[name] = measure()
        write_text(path, json.dumps(known, indent=1) + "\n")
    return known[name]


def seconds_an_epoch(plan: Plan, teacher: VAE, data: Data, *, threads: int, compile: str = "eager", **settings: Any) -> float:
    """Of one student alone, on so many threads, with settings of `fit`; infinite where it can't be compiled."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    few = replace(data, train=Split(data.train.images[:TIMED_IMAGES]))
    try:
        history = fit(plan.student(teacher), few, epochs=3, batch_size=batch_size(data), compile=compile, **settings)
    except Exception as error:
        if compile == "eager":
            raise
        logger.warning("not compiled: %s", reason(error))  # no C++ compiler: whatever torch raises
        return math.inf
    finally:
        torch.set_num_threads(before)
    return float(history["seconds"].iloc[1:].min()) * len(data.train) / len(few.train)


def batch_size(data: Data) -> int:
    """Twice as large where there are steps enough all the same: an epoch takes less then."""
    return 2 * BATCH_SIZE if len(data.train) >= MANY else BATCH_SIZE


def lessons(teacher: VAE, weight: float, importance_samples: int) -> list[Penalty]:
    """What a student learns besides the ELBO: from its teacher, and to make do with the best of several codes.

    Nothing where q(z|x) is one point, as in a VQ-VAE: no KL is finite then, and all codes are one.
    """
    if teacher.point:
        return []
    distilled: list[Penalty] = [Distill(weight, teacher)] if weight else []
    return [*distilled, Tighten(1.0, num_samples=importance_samples)] if importance_samples > 1 else distilled
