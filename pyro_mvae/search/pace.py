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
from pyro_mvae.environment import cpu
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
    """

    seconds: float
    distilled: bool
    precision: str = "float32"
    compile: str = "auto"

    def epochs(self, seconds: float) -> int:
        """As many as there is time for, and one at least.

        Example:
            >>> Pace(2.0, distilled=False).epochs(25.0)
            12
        """
        return max(int(seconds / self.seconds), 1)


def pace_of(
    plan: Plan,
    teacher: VAE,
    data: Data,
    out: Path,
    *,
    distill: float,
    importance_samples: int = 1,
    precisions: Sequence[str] = ("float32",),
    threads: int = 1,
    seconds: float = 0.0,
) -> Pace:
    """The pace of a student, measured once and kept in `paces.json`; what a teacher takes is measured with the first student.

    Of several precisions it is in the one that it is faster in, as depthwise convolutions are slower in bfloat16; and compiled
    where that shortens a step and there is time for it.

    Args:
        distill, importance_samples: as in `Lesson`.
        precisions, threads: what it may be trained in, and on how many.
        seconds: how long it is going to be trained.
    """

    def taken(name: str, precision: str, *, weight: float = 0.0, besides: float = 0.0, compile: str = "eager") -> float:
        how: dict[str, Any] = {"precision": precision, "threads": threads, "compile": compile}
        how["penalties"] = lessons(teacher, weight, importance_samples)
        known_as = f"{name}, {precision}, threads={threads}, {compile}, {cpu()}"
        return once(out, known_as, lambda: max(seconds_an_epoch(plan, teacher, data, **how) - besides, 0.0))

    alone = {precision: taken(plan.name, precision) for precision in precisions}
    precision = min(alone, key=alone.__getitem__)
    pace = Pace(alone[precision], distilled=False, precision=precision)
    if distill and not teacher.point:
        pace = with_lesson(pace, taken("lesson", precision, weight=distill, besides=pace.seconds))
    if seconds < WORTH_COMPILING:
        return pace
    name, weight = (f"{plan.name} and its teacher", distill) if pace.distilled else (plan.name, 0.0)
    compiled = taken(name, precision, weight=weight, compile="inductor")
    if compiled < pace.seconds:
        return replace(pace, seconds=compiled, compile="inductor")
    return replace(pace, compile="eager")


def with_lesson(pace: Pace, lesson: float) -> Pace:
    """The pace of a student whose epoch takes some seconds more with its teacher, who is left out where that is too many.

    Example:
        >>> slow, fast = Pace(3.0, distilled=False), Pace(1.0, distilled=False)
        >>> with_lesson(slow, 2.0) == Pace(5.0, distilled=True), with_lesson(fast, 2.0) == fast
        (True, True)
    """
    distilled = pace.seconds + lesson <= DEAR * pace.seconds
    return replace(pace, seconds=pace.seconds + lesson, distilled=True) if distilled else pace


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
