"""Successive halving: how long each round of a search is, and who is in the next."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_mvae.atomic import write_text
from pyro_mvae.data.progress import Track
from pyro_mvae.nets.kinds import KINDS
from pyro_mvae.search.plans import Plan
from pyro_mvae.search.rounds import RUNGS, Job, attempts

logger = logging.getLogger(__name__)

KEPT = 2
"""One of so many is in the second round, and the best of each kind of nets at least: some learn fast and others get far."""
LEAST_EPOCHS = 4
"""In the first round, if there is time: after one, those that learn fast are ahead of those that get far."""

Row = dict[str, Any]


def schedule(students: int, out: Path, *, seconds: float, epoch: float, processes: int = 1) -> list[tuple[float, int]]:
    """The rounds of a search, made once, then kept in `schedule.json`; arguments as of `rounds`."""
    path = out / "schedule.json"
    if not path.is_file():
        write_text(path, json.dumps(rounds(students, seconds, epoch=epoch, processes=processes)) + "\n")
    return [(each, number) for each, number in json.loads(path.read_text(encoding="utf-8"))]


def rounds(students: int, seconds: float, *, epoch: float, processes: int = 1) -> list[tuple[float, int]]:
    """For each round the seconds of a student, and how many there are: fewer where there is little time.

    Args:
        students: how many there are to begin with.
        seconds: from the beginning to the end.
        epoch: seconds of an epoch of a student like others.
        processes: how many students are trained at a time.

    Example:
        >>> rounds(12, 200.0, epoch=1.0)
        [(4.0, 10), (8.0, 5), (13.333, 3), (80.0, 1)]
        >>> rounds(12, 40.0, epoch=1.0)
        [(4.0, 2), (4.0, 2), (4.0, 2), (16.0, 1)]
    """
    first = max(min(students, processes * int(RUNGS[0] * seconds / (LEAST_EPOCHS * epoch))), 1)
    of_kinds = min(first, len(KINDS))
    numbers = (first, max(first // KEPT, of_kinds), of_kinds, 1)
    return [
        (round(share * seconds / math.ceil(number / processes), 3), number) for share, number in zip(RUNGS, numbers, strict=True)
    ]


def leaders_first(ranked: Sequence[Plan]) -> list[Plan]:
    """Plans, the best first, with the best of each kind of nets before all others."""
    leaders = [plan for i, plan in enumerate(ranked) if plan.net not in {better.net for better in ranked[:i]}]
    return [*leaders, *(plan for plan in ranked if plan not in leaders)]


def halved(
    plans: Sequence[Plan],
    halving: Sequence[tuple[float, int]],
    job: Callable[[Plan, int, float], Job],
    *,
    processes: int,
    progress: Track,
) -> list[Row]:
    """The rows of all students that were trained, in each round those that were the better ones of the one before.

    Args:
        halving: the rounds, as of `schedule`.
        job: of a plan, in the round of a number, for so many seconds.

    Raises:
        FloatingPointError: when none came to any numbers.
    """
    rows: dict[str, Row] = {}
    for rung, (seconds, number) in enumerate(halving):
        jobs = [job(plan, rung, seconds) for plan in plans[:number]]
        done = attempts(jobs, processes=processes)
        tried = {row["name"]: row for row in progress(done, f"Students, round {rung + 1} of {len(RUNGS)}", len(jobs))}
        failed = {name: row["failed"] for name, row in tried.items() if "failed" in row}
        for name, reason in failed.items():
            logger.warning("student %s: %s", name, reason)
        rows |= {name: row for name, row in tried.items() if name not in failed}
        if not rows:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise FloatingPointError(f"no student could be trained: {reasons}")
        left = [plan for plan in plans[:number] if plan.name not in failed]
        plans = leaders_first(sorted(left, key=lambda plan: rows[plan.name]["held_out"]))
    return list(rows.values())
