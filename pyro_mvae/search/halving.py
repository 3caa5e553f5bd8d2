"""Successive halving: how long each round of a search is, and who is in the next."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_mvae.atomic import write_text
from pyro_mvae.data.progress import Track
from pyro_mvae.nets.kinds import KINDS
from pyro_mvae.search.plans import Plan
from pyro_mvae.search.rounds import Job, Row, attempts, row_of

logger = logging.getLogger(__name__)

SHARES = (0.2, 0.2, 0.2, 0.4)
"""Of the time: for all students, a half of them, three, of each kind of nets the best, and one, with rounding at last."""
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
    return max(min(students, processes * int(SHARES[0] * seconds / (LEAST_EPOCHS * epoch))), 1)


@dataclass(frozen=True)
class Rung:
    """A round of a search.

    Attributes:
        seconds: that each student has.
        students: how many there are.
        rounded: whether they are trained with rounding at last.
    """

    seconds: float
    students: int
    rounded: bool = False


def rungs(students: int, minutes: Sequence[float], *, processes: int = 1) -> list[Rung]:
    """The rounds of so many students' search: as of `SHARES`, and as the last two of those in what it is given more.

    Args:
        students: how many there are to begin with.
        minutes: from the beginning to the end, of all there are; after the first number, more than the one before.
        processes: how many are trained at a time.

    Example:
        >>> [(rung.seconds, rung.students) for rung in rungs(10, [3.0])]
        [(3.6, 10), (7.2, 5), (12.0, 3), (72.0, 1)]
        >>> [(rung.seconds, rung.students) for rung in rungs(10, [3.0, 6.0])[4:]]
        [(20.0, 3), (120.0, 1)]
    """
    few = min(students, len(KINDS))
    numbers = (students, max(students // KEPT, few), few, 1)
    begun = list(zip(SHARES, numbers, strict=True))
    more = [(share / sum(SHARES[2:]), number) for share, number in begun[2:]]
    return [
        Rung(round(share * (end - start) * 60 / math.ceil(number / processes), 3), number, rounded=i == len(shared) - 1)
        for start, end, shared in zip([0.0, *minutes], minutes, [begun, *[more] * (len(minutes) - 1)], strict=False)
        for i, (share, number) in enumerate(shared)
    ]


def granted(out: Path, minutes: float) -> list[float]:
    """The minutes that the search of a folder was given, and was given again, these at last: kept in `minutes.json`.

    Raises:
        ValueError: for fewer than it has had.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp())
        >>> granted(out, 10.0), granted(out, 10.0), granted(out, 30.0)
        ([10.0], [10.0], [10.0, 30.0])
    """
    path = out / "minutes.json"
    known: list[float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if known and minutes < known[-1]:
        raise ValueError(f"{out} holds a search of {known[-1]:g} minutes, not {minutes:g}: give that or more, or another --out")
    if not known or minutes > known[-1]:
        known.append(minutes)
        write_text(path, json.dumps(known) + "\n")
    return known


def leaders_first(ranked: Sequence[Plan]) -> list[Plan]:
    """Plans, the best first, with the best of each kind of nets before all others."""
    leaders = [plan for i, plan in enumerate(ranked) if plan.net not in {better.net for better in ranked[:i]}]
    return [*leaders, *(plan for plan in ranked if plan not in leaders)]


def halved(
    plans: Sequence[Plan],
    halving: Sequence[Rung],
    job: Callable[[Plan, int, int], Job],
    out: Path,
    *,
    processes: int,
    progress: Track,
) -> tuple[list[Row], dict[str, str]]:
    """The best row of each student that was trained, in each round those that were the better ones of the one before.

    Args:
        halving: the rounds.
        job: of a plan, in the round of a number, beside so many students; not asked of one that was done.
        out: the folder of the search.

    Returns: the rows, and of students that were lost the reason by their name; one that was lost late has a row all the same.

    Raises:
        FloatingPointError: when none came to any numbers.
    """
    ranked = list(plans)
    rows: dict[str, Row] = {}
    lost: dict[str, str] = {}
    for i, rung in enumerate(halving):
        some = ranked[: rung.students]
        tried = {plan.name: row for plan in some if (row := row_of(plan, i, out)) is not None}
        left = [plan for plan in some if plan.name not in tried]
        jobs = [job(plan, i, len(left)) for plan in progress(left, "Timing students", len(left))]
        done = progress(attempts(jobs, processes=processes), f"Students, round {i + 1} of {len(halving)}", len(jobs))
        tried |= {row["name"]: row for row in done}
        failed = {name: row["failed"] for name, row in tried.items() if "failed" in row}
        for name, reason in failed.items():
            logger.warning("student %s: %s", name, reason)
        lost |= failed
        for name, row in tried.items():
            if name not in failed:
                best = min(rows.get(name, row), row, key=lambda each: each["held_out"])
                rows[name] = {**best, "rounds": row["rounds"]}
        if not rows:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise FloatingPointError(f"no student could be trained: {reasons}")
        better = sorted((plan for plan in some if plan.name not in failed), key=lambda plan: rows[plan.name]["held_out"])
        ranked = leaders_first([*better, *ranked[rung.students :]])
    return list(rows.values()), lost
