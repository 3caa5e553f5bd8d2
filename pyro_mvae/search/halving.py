"""Successive halving: how long each round of a search is, and who is in the next."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pyro_mvae.data.progress import Track
from pyro_mvae.nets.kinds import KINDS
from pyro_mvae.search.plans import Plan
from pyro_mvae.search.rounds import RUNGS, Job, Row, attempts, row_of

logger = logging.getLogger(__name__)

KEPT = 2
"""One of so many is in the second round, and the best of each kind of nets at least: some learn fast and others get far."""
LEAST_EPOCHS = 4
"""In the first round, if there is time: after one, those that learn fast are ahead of those that get far."""


def affordable(students: int, seconds: float, *, epoch: float, processes: int = 1) -> int:
    """How many of some students a search begins with: fewer where there is little time, one at least.

    Args:
        students: how many there could be.
        seconds: of the whole search.
        epoch: seconds of an epoch of a student like others.
        processes: how many students are trained at a time.

    Example:
        >>> affordable(12, 200.0, epoch=1.0), affordable(12, 40.0, epoch=1.0), affordable(12, 40.0, epoch=1.0, processes=4)
        (10, 2, 8)
    """
    return max(min(students, processes * int(RUNGS[0] * seconds / (LEAST_EPOCHS * epoch))), 1)


def rounds(students: int, seconds: float, *, processes: int = 1) -> list[tuple[float, int]]:
    """For each round of so many students' search the seconds that a student has, and how many there are.

    Args:
        students: how many there are to begin with.
        seconds: from the beginning to the end.
        processes: how many are trained at a time.

    Example:
        >>> rounds(10, 200.0)
        [(4.0, 10), (8.0, 5), (13.333, 3), (80.0, 1)]
        >>> rounds(2, 40.0)
        [(4.0, 2), (4.0, 2), (4.0, 2), (16.0, 1)]
    """
    few = min(students, len(KINDS))
    numbers = (students, max(students // KEPT, few), few, 1)
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
    job: Callable[[Plan, int, float, int], Job],
    out: Path,
    *,
    processes: int,
    progress: Track,
) -> list[Row]:
    """The rows of all students that were trained, in each round those that were the better ones of the one before.

    Args:
        halving: the rounds, as of `rounds`.
        job: of a plan, in the round of a number, for so many seconds, beside so many students; not asked of one that was done.
        out: the folder of the search.

    Raises:
        FloatingPointError: when none came to any numbers.
    """
    rows: dict[str, Row] = {}
    for rung, (seconds, number) in enumerate(halving):
        some = plans[:number]
        tried = {plan.name: row for plan in some if (row := row_of(plan, rung, out)) is not None}
        left = [plan for plan in some if plan.name not in tried]
        jobs = [job(plan, rung, seconds, len(left)) for plan in progress(left, "Timing students", len(left))]
        done = progress(attempts(jobs, processes=processes), f"Students, round {rung + 1} of {len(RUNGS)}", len(jobs))
        tried |= {row["name"]: row for row in done}
        failed = {name: row["failed"] for name, row in tried.items() if "failed" in row}
        for name, reason in failed.items():
            logger.warning("student %s: %s", name, reason)
        rows |= {name: row for name, row in tried.items() if name not in failed}
        if not rows:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise FloatingPointError(f"no student could be trained: {reasons}")
        plans = leaders_first(sorted((p for p in some if p.name not in failed), key=lambda plan: rows[plan.name]["held_out"]))
    return list(rows.values())
