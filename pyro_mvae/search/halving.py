"""Successive halving: how long each round of a search is, and who is in the next."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_mvae.atomic import write_text
from pyro_mvae.data.progress import Track
from pyro_mvae.nets.kinds import KINDS
from pyro_mvae.search.plans import Plan
from pyro_mvae.search.rounds import Job, Row, attempts, rounds_before, row_of

logger = logging.getLogger(__name__)

MINUTES = 10.0
"""Of a search that is not told."""
ROUND_SHARES = (0.2, 0.2, 0.2, 0.4)
"""Of the time: for all students, a half of them, three, of each kind of nets the best, and one, with rounding at last."""
AGAIN = ROUND_SHARES[2:]
"""Those that time which is given again is shared as."""
KEPT = 2
"""One of so many is in the second round, and the best of each kind of nets at least: some learn fast and others get far."""
LEAST_EPOCHS = 4
"""In the first round, if there is time: after one, those that learn fast are ahead of those that get far."""


def affordable(students: int, seconds: float, *, epoch: float, processes: int = 1) -> int:
    """How many of some students a search begins with: fewer where there is little time, one at least.

    One of each kind of nets where there is time for an epoch of each: which kind it is matters more than how long it is trained.

    Args:
        students: how many there could be.
        seconds: of the whole search.
        epoch: seconds of an epoch of a student like others.
        processes: how many students are trained at a time.

    Example:
        >>> affordable(12, 200.0, epoch=1.0), affordable(12, 40.0, epoch=1.0), affordable(12, 40.0, epoch=1.0, processes=4)
        (10, 3, 8)
    """
    epochs = int(ROUND_SHARES[0] * seconds / epoch)
    return max(min(students, max(processes * (epochs // LEAST_EPOCHS), min(processes * epochs, len(KINDS)))), 1)


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
    """The rounds of so many students' search: as of `ROUND_SHARES`, and as of `AGAIN` in what it is given more.

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
    once = list(zip(ROUND_SHARES, numbers, strict=True))
    again = [(share / sum(AGAIN), number) for share, number in once[-len(AGAIN) :]]
    return [
        Rung(round(share * (end - start) * 60 / math.ceil(number / processes), 3), number, rounded=i == len(shared) - 1)
        for start, end, shared in zip([0.0, *minutes], minutes, [once, *[again] * (len(minutes) - 1)], strict=False)
        for i, (share, number) in enumerate(shared)
    ]


def granted(out: Path, minutes: float | None) -> list[float]:
    """The minutes that the search of a folder was given, and was given again, these at last: kept in `minutes.json`.

    Those of which nothing was used yet are forgotten when others are given.

    Args:
        minutes: in all; when None, what it was given before, or `MINUTES`.

    Raises:
        ValueError: for fewer than it was given.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp())
        >>> granted(out, None), granted(out, 5.0)
        ([10.0], [5.0])
        >>> (out / "students.json").touch()
        >>> granted(out, 30.0), granted(out, None)
        ([5.0, 30.0], [5.0, 30.0])
    """
    path = out / "minutes.json"
    known: list[float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    wanted = float(known[-1] if known else MINUTES) if minutes is None else float(minutes)
    used = [each for i, each in enumerate(known) if any_used(out, i)]
    if used and wanted < used[-1]:
        raise ValueError(f"{out} holds a search of {used[-1]:g} minutes, not {wanted:g}: give that or more, or another --out")
    now = used if used and wanted == used[-1] else [*used, wanted]
    if now != known:
        write_text(path, json.dumps(now) + "\n")
    return now


def any_used(out: Path, i: int) -> bool:
    """Whether any of the minutes that a search was given first (i = 0), or again, were used."""
    if i == 0:
        return (out / "students.json").is_file()
    first = len(ROUND_SHARES) + len(AGAIN) * (i - 1)
    return any((out / "candidates").glob(f"*-{first}.job.json"))


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
    """What came of all students in the rounds of a search, each begun by those that did best in the one before.

    Where a round is of more students than the one before it, those that did best earlier are in it again.

    Args:
        halving: the rounds.
        job: of a plan, in the round of a number, beside so many students; not asked of one that was done.
        out: the folder of the search.

    Returns: a row for each student, see `best_of`, and of those that were lost in a round the reason by their name.

    Raises:
        FloatingPointError: when none came to any numbers.
    """
    ranked = list(plans)
    lost: dict[str, str] = {}
    for i, rung in enumerate(halving):
        some = ranked[: rung.students]
        left = [plan for plan in some if row_of(plan, i, out) is None]
        jobs = [job(plan, i, len(left)) for plan in progress(left, "Timing students", len(left))]
        done = progress(attempts(jobs, processes=processes), f"Students, round {i + 1} of {len(halving)}", len(jobs))
        failed = {row["name"]: row["failed"] for row in done if "failed" in row}
        for name, reason in failed.items():
            logger.warning("student %s: %s", name, reason)
        lost |= failed
        rows = {plan: row for plan in some if (row := row_of(plan, i, out)) is not None}
        better = sorted(rows, key=lambda plan: rows[plan]["held_out"])
        known = [plan for plan in ranked if plan not in rows and rounds_before(plan, i, out)]
        ranked = leaders_first([*better, *known])
        if not ranked:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise FloatingPointError(f"no student could be trained: {reasons}")
    return [best_of(rounds_before(plan, len(halving), out)) for plan in ranked], lost


def best_of(rows: Mapping[int, Row]) -> Row:
    """The best of a student's rows by their rounds: with the round that it is of, and in how many the student was.

    Example:
        >>> best_of({0: {"held_out": 9.0}, 1: {"held_out": 8.0}, 4: {"held_out": 8.5}})
        {'held_out': 8.0, 'round': 2, 'rounds': 3}
    """
    best = min(rows, key=lambda i: rows[i]["held_out"])
    return {**rows[best], "round": best + 1, "rounds": len(rows)}
