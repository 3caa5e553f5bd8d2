"""Given a budget, the best small model: many students are begun, the better ones go on, and what each costs is measured."""

from __future__ import annotations

import copy
import filecmp
import json
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_mvae.atomic import atomic, write_text
from pyro_mvae.claimed import claim
from pyro_mvae.compress.quantize import Quantize
from pyro_mvae.data import Data
from pyro_mvae.data.holdout import held_out
from pyro_mvae.data.images import Split, spread
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.likelihood import negative_log_likelihood
from pyro_mvae.inference.checkpoint import checksum, digest, load_model, save_model
from pyro_mvae.inference.precision import computed, require
from pyro_mvae.latency.blocks import LatencyTable
from pyro_mvae.models import VAE
from pyro_mvae.nets.kinds import KINDS
from pyro_mvae.numbers import above, count, number
from pyro_mvae.search.budget import UNITS, Budget, Cost
from pyro_mvae.search.halving import affordable, granted, halved, leaders_first, rungs
from pyro_mvae.search.layout import known_costs, laid_out, once_laid_out
from pyro_mvae.search.pace import Pace, pace_of
from pyro_mvae.search.pareto import front, write_pareto
from pyro_mvae.search.plans import Plan, candidates, least
from pyro_mvae.search.rounds import Job, Lesson, assigned, handed_over
from pyro_mvae.search.teachers import check_handed_over, check_latents, fitting_latents, taught
from pyro_mvae.side_by_side import threads_each

HELD_OUT = 2000
FORMAT = 9
"""Of what a folder keeps of its search."""
FASTEST = "fastest"
"""A precision: that in which an epoch of a student takes least."""


@dataclass(frozen=True)
class Miniature:
    """What `miniaturize` found.

    Attributes:
        model: the student chosen, quantised.
        table: every student that came to numbers, a row each, see `miniaturize`.
        name: the student's, in the table.
        lost: of students that came to no numbers in some round, the reason by their name.
    """

    model: VAE
    table: pd.DataFrame
    name: str
    lost: dict[str, str]


@dataclass(frozen=True)
class Search:
    """What a search is asked for; kept in `search.json`, so that it can be taken up again."""

    budget: Budget
    weight_bits: tuple[int, ...] = (8,)
    latent_dims: tuple[int, ...] | None = None
    nll_samples: int = 25
    distill: float = 1.0
    importance_samples: int = 1
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        count(self.nll_samples, "nll_samples")
        count(self.importance_samples, "importance_samples")
        count(self.seed, "seed", 0)
        if not 0 <= number(self.distill, "distill") < math.inf:
            raise ValueError(f"distill is {self.distill}, expected 0 or more")
        for bits in self.weight_bits:
            Quantize(weight_bits=bits)
        if not self.weight_bits or self.latent_dims == ():
            raise ValueError("weight_bits and latent_dims need one number or more")


def miniaturize(
    teacher: VAE,
    data: Data,
    *,
    budget: Budget,
    minutes: float | None = None,
    weight_bits: Sequence[int] = (8,),
    latent_dims: Sequence[int] | None = None,
    nll_samples: int = 25,
    distill: float = 1.0,
    importance_samples: int = 1,
    precision: str = "float32",
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    processes: int = 1,
    latency_table: LatencyTable | None = None,
    progress: Track = untracked,
) -> Miniature:
    """Find the student that loses least NLL within a budget, by successive halving under the objective (14).

    1. Students of the teacher's class are laid out: mobile, convolutional and fully connected nets of several shapes, each as
       large as the budget allows and smaller, as many as there is time for. Files of each are made, weighed and timed before it
       is trained; a table of blocks guides to them.
    2. All are trained for a fifth of the time, the better half for another, the best three for a third, and among them the best
       of each kind of nets: those that learn fast are not always those that get far. The best of them is trained for what is
       left, with rounding as on the phone at last, the λ of (17) a multiplier that rises while the rounding error is more than
       half of what it was. Others are quantised after training. A student is distilled (19) unless its epoch takes more than
       twice as long then, as with a teacher many times its size: more epochs teach it more.
    3. In minutes that the search is given again three are trained on for a third, the best of each kind of nets among them, and
       the best of those for the rest. The numbers of a student are those of the round that it did best in.
    4. Those that go on are chosen by the NLL of a tenth of the training images, which no student sees: by as many samples as at
       last, a bound of few would pass over students whose encoders say little. The NLL on test images is measured of all that
       nothing cheaper beats; the least held-out one that is within the budget is taken. Without a bound on cost the smallest
       files within `nll_loss` are.

    Args:
        teacher: a fitted model; left as it is. Students are trained on the processor, wherever it is.
        minutes: of training, in all; measuring comes on top. In the folder of a search that was given fewer it goes on; when
            None what it was given, or 10.
        weight_bits: what to try. A `.pte` holds a byte a weight whatever they are.
        latent_dims: sizes of the code to try; when None, as many as the teacher has active. A teacher of a smaller code is one
            with the rest pruned, trained on for an epoch.
        nll_samples: importance samples for each image.
        distill: λ of (19), where students are distilled; a VQ-VAE's learn from the data alone.
        importance_samples: K of the bound that students are trained on, see `penalties.Tighten`; 1 for the ELBO. For the smallest
            students, whose encoders say little; an epoch takes longer the larger K is.
        precision: what students are trained in until rounding is: "float32", "bfloat16", or "fastest", what each
            student is faster in, of those that the processor computes in.
        out: the folder to make, or to go on in: a student that was trained is not trained again. It holds `student.safetensors`,
            `pareto.csv`, `pareto.html`, and all students in `candidates/`.
        processes: how many students are trained at a time, each in a process of its own; where fewer are left, the last one at
            least, each has more threads.
        latency_table: of this machine; the one kept for it when None.

    Returns: the student, its name, why students were lost, and a table with a row for each that came to numbers: name, widths,
        hidden, encoder, latent_dim and weight_bits, see `Plan`; kb, macs and latency_us, measured, see `Cost`; rounds, in how
        many it was; round, that in which it did best, and of it all that follows; epochs; distilled; rounded, "in training" or
        "after", and in training rounding_left, the share of the rounding error, and rounding_weight, the λ of (17); held_out, the
        NLL on images it did not see, nats each, of int8; nll and nll_loss on test images, where measured; within (the budget),
        front, chosen.

    Raises:
        ValueError: for settings that can't be, or a folder of another search, or one that was given more minutes.
        FloatingPointError: when no student can be trained; one that can't is left out.
        BudgetError: when no student is within the budget; it says how near one can come on each axis.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> from pyro_mvae.data import Split
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> data = Data("noise", Split(images), Split(images[:8]), binarization="none")
        >>> found = miniaturize(VAE((1, 8, 8), 4), data, budget=Budget(kb=40), minutes=0.001, nll_samples=1)
        >>> float(found.table["kb"][found.table["chosen"]].item()) < 40
        True
    """
    sizes = None if latent_dims is None else tuple(latent_dims)
    count(processes, "processes")
    if minutes is not None:
        above(minutes, "minutes")
    search = Search(budget, tuple(weight_bits), sizes, nll_samples, distill, importance_samples, precision, seed)
    if precision != FASTEST:
        require(precision, torch.device("cpu"))
    if any(parameter.device.type != "cpu" for parameter in teacher.parameters()):
        teacher = copy.deepcopy(teacher).cpu()
    check_latents(teacher, search.latent_dims or ())
    check_handed_over(teacher)
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return searched(search, minutes, teacher, data, Path(folder), processes, latency_table, progress)
    claim(Path(out) / "search.json", {**asdict(search), **digests(teacher, data), "format": FORMAT}, what="search")
    return searched(search, minutes, teacher, data, Path(out), processes, latency_table, progress)


def digests(teacher: VAE, data: Data) -> dict[str, str]:
    """What tells another teacher, or other data, from those that a folder was begun with."""
    images = {"train": data.train.images, "test": data.test.images}
    return {"teacher": digest(teacher)[:16], "data": checksum(images, data.binarization)[:16]}


def searched(
    search: Search,
    minutes: float | None,
    teacher: VAE,
    data: Data,
    out: Path,
    processes: int,
    table: LatencyTable | None,
    progress: Track,
) -> Miniature:
    given = granted(out, minutes)
    data, held = with_held_out(data, seed=search.seed)
    latents = search.latent_dims or (fitting_latents(teacher, data.train.images),)
    teachers = {size: taught(teacher, size, data, out) for size in latents}
    how: dict[str, Any] = {"distill": search.distill, "importance_samples": search.importance_samples}
    precisions = computed(torch.device("cpu")) if search.precision == FASTEST else (search.precision,)

    def pace(plan: Plan, *, students: int, seconds: float = 0.0) -> Pace:
        on: dict[str, Any] = {"precisions": precisions, "threads": threads_of(students, processes), "seconds": seconds}
        return pace_of(plan, teachers[plan.latent_dim], data, out, **on, **how)

    def begun() -> dict[Plan, Cost]:
        latency = (table or LatencyTable(LatencyTable.usual_path())).estimate
        plans = planned(search, teachers, latency, progress)
        if not plans:
            return laid_out(nearest(search, teachers, latency), teachers, search.budget, out, progress=progress)
        epoch = statistics.median(pace(plan, students=len(plans)).seconds for plan in plans[: len(KINDS)])
        most = affordable(len(plans), given[0] * 60, epoch=epoch, processes=processes)
        return laid_out(plans, teachers, search.budget, out, most=most, progress=progress)

    costs = once_laid_out(out, begun)
    if not costs:
        raise search.budget.unmet(known_costs(out).values())
    with tempfile.TemporaryDirectory() as shared:
        files = handed_over(teachers, data, held, Path(shared))
        lesson = Lesson(seed=search.seed, files=files, out=out, nll_samples=search.nll_samples, **how)

        halving = rungs(len(costs), given, processes=processes)

        def job(plan: Plan, rung: int, students: int) -> Job:
            seconds, told = halving[rung].seconds, replace(lesson, rounded=halving[rung].rounded)
            return assigned(plan, rung, seconds, told, lambda: pace(plan, students=students, seconds=seconds))

        rows, lost = halved(list(costs), halving, job, out, processes=processes, progress=progress)
    publish(rows, out)
    frame = table_of({plan.name: cost for plan, cost in costs.items()}, rows)
    frame = measured_on_test(frame, search, teacher, data, out, progress)
    return chosen(frame, lost, search, out)


def threads_of(students: int, processes: int) -> int:
    """How many threads each student of a round has: as many as there are here where there is one process, this one."""
    return torch.get_num_threads() if processes == 1 else threads_each(students, processes=processes)


def planned(search: Search, teachers: dict[int, VAE], latency: Callable[[VAE], float], progress: Track) -> list[Plan]:
    """What fits the budget by estimate, the largest of each kind of nets first."""
    how: dict[str, Any] = {"latent_dims": tuple(teachers), "weight_bits": search.weight_bits, "progress": progress}
    return leaders_first(candidates(next(iter(teachers.values())), search.budget, latency=latency, **how))


def nearest(search: Search, teachers: dict[int, VAE], latency: Callable[[VAE], float]) -> list[Plan]:
    """What comes nearest to the budget by estimate."""
    smallest = min(teachers)
    return least(teachers[smallest], search.budget, latent_dim=smallest, bits=min(search.weight_bits), latency=latency)


def with_held_out(data: Data, *, seed: int) -> tuple[Data, Tensor]:
    """The data without a tenth of its training images, and some of those."""
    images = data.train.images
    sides = torch.tensor(held_out([image.numpy().tobytes() for image in images], seed=seed))
    return replace(data, train=Split(images[~sides])), spread(images[sides], HELD_OUT)


def publish(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Leave of each student what it was in the round that it did best in, under its name."""
    for row in rows:
        best = out / "candidates" / f"{row['name']}-{row['round'] - 1}.int8.safetensors"
        path = out / "candidates" / f"{row['name']}.safetensors"
        if not path.is_file() or not filecmp.cmp(best, path, shallow=False):
            with atomic(path) as temporary:
                shutil.copyfile(best, temporary)


def table_of(costs: dict[str, Cost], rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each student that was trained, the best first."""
    frame = pd.DataFrame([{**row, **asdict(costs[row["name"]])} for row in rows])
    frame["front"] = front(frame, [*Cost.__annotations__, "held_out"])
    return frame.sort_values("held_out", ignore_index=True)


def measured_on_test(frame: pd.DataFrame, search: Search, teacher: VAE, data: Data, out: Path, progress: Track) -> pd.DataFrame:
    """The table with the NLL on test images of all students of the front, and what it is above the teacher's."""
    path = out / "nll.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    first = frame[frame["front"]]
    keys = {"teacher": "teacher"} | {name: f"{name}, round {n}" for name, n in zip(first["name"], first["round"], strict=True)}
    for name, key in keys.items():
        if key not in known:
            model = teacher if name == "teacher" else load_model(out / "candidates" / f"{name}.safetensors")
            how: dict[str, Any] = {"binarization": data.binarization, "seed": search.seed, "progress": progress}
            what = {"num_samples": search.nll_samples, "description": f"NLL of {name}"}
            known[key] = negative_log_likelihood(model, data.test.images, **how, **what).nats
            write_text(path, json.dumps(known, indent=1) + "\n")
    frame["nll"] = frame["name"].map({name: known[key] for name, key in keys.items()})
    frame["nll_loss"] = frame["nll"] - known["teacher"]
    return frame


def chosen(frame: pd.DataFrame, lost: dict[str, str], search: Search, out: Path) -> Miniature:
    """Choose, write what was found, and read the student."""
    budget = search.budget
    points: list[dict[str, float]] = [dict(zip(UNITS, map(float, row), strict=True)) for row in frame[list(UNITS)].to_numpy()]
    frame["within"] = [not budget.over(point) for point in points]
    first = frame.sort_values(by=["within", "held_out" if budget.costs() else "kb"], ascending=[False, True]).iloc[0]
    best = first["name"] if first["within"] else None
    frame["chosen"] = frame["name"] == best
    write_pareto(frame, search.budget, out, lost=lost)
    if best is None:
        raise budget.unmet(points)
    model = load_model(out / "candidates" / f"{best}.safetensors")
    save_model(out / "student.safetensors", model)
    return Miniature(model, frame, best, lost)
