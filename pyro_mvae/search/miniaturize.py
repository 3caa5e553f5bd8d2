"""Given a budget, the best small model: many students are begun, the better ones go on, and what each costs is measured."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_mvae.atomic import write_text
from pyro_mvae.compress.prune import PruneLatents, num_active
from pyro_mvae.compress.quantize import Quantize
from pyro_mvae.data import Data
from pyro_mvae.data.holdout import held_out
from pyro_mvae.data.images import Split
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.likelihood import negative_log_likelihood
from pyro_mvae.inference import fit, penalties
from pyro_mvae.inference.checkpoint import load_model, read, save_model, write
from pyro_mvae.inference.numbers import above, count
from pyro_mvae.inference.penalties import Distill, Penalty, Round
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.inference.tuning import OneCycle, quantization_error
from pyro_mvae.models import VAE
from pyro_mvae.search.budget import UNITS, Budget, Cost, cost_of
from pyro_mvae.search.latency import LatencyTable
from pyro_mvae.search.pareto import front, write_pareto
from pyro_mvae.search.plans import Plan, candidates, within
from pyro_mvae.search.student import calibrated, folded
from pyro_mvae.side_by_side import side_by_side

RUNGS = (0.3, 0.3, 0.4)
"""Shares of the time: for all students, for a third of them, and for a third of those, trained with rounding at last."""
KEPT = 3
HELD_OUT, FEW_SAMPLES = 2000, 5
DATA = "data.safetensors"
TIMED_IMAGES = 1280
BATCH_SIZE, LR = 64, 4e-3
ROUNDED = 0.5
"""The error that rounding is held to in the last stage, as a share of what it was before."""


@dataclass(frozen=True)
class Miniature:
    """What `miniaturize` found.

    Attributes:
        model: the student chosen, quantised.
        table: every student, a row each, see `miniaturize`.
        name: the student's, in the table.
    """

    model: VAE
    table: pd.DataFrame
    name: str


@dataclass(frozen=True)
class Search:
    """What a search is asked for; kept in `search.json`, so that it can be taken up again."""

    budget: Budget
    minutes: float = 10.0
    weight_bits: tuple[int, ...] = (8,)
    latent_dims: tuple[int, ...] | None = None
    nll_samples: int = 25
    distill: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        above(self.minutes, "minutes")
        count(self.nll_samples, "nll_samples")
        for bits in self.weight_bits:
            Quantize(weight_bits=bits)
        if not self.weight_bits or self.latent_dims == ():
            raise ValueError("weight_bits and latent_dims need one number or more")


def miniaturize(
    teacher: VAE,
    data: Data,
    *,
    budget: Budget,
    minutes: float = 10.0,
    weight_bits: Sequence[int] = (8,),
    latent_dims: Sequence[int] | None = None,
    nll_samples: int = 25,
    distill: float = 1.0,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    processes: int = 1,
    latency_table: LatencyTable | None = None,
    progress: Track = untracked,
) -> Miniature:
    """Find the student that loses least NLL within a budget, by successive halving under the objective (14).

    1. Students of the teacher's class with mobile nets are laid out: several depths and shapes, each as large as the budget
       allows and smaller. Files of each are made, weighed and timed before it is trained; a table of blocks guides to them.
    2. All are distilled (19) for a share of the time, the better third goes on, and a third of that; the last are trained with
       rounding as on the phone, the λ of (17) a multiplier that holds the rounding error to half of what it was. Others are
       quantised after training.
    3. Those that go on are chosen by the bound on a tenth of the training images that no student sees. The NLL on test images is
       measured of all that nothing cheaper beats; the least held-out bound that is within the budget is taken. Without a bound on
       cost the smallest files within `nll_loss` are.

    Args:
        teacher: a fitted model; left as it is.
        minutes: of training; measuring comes on top.
        weight_bits: what to try. Files hold a byte a weight whatever they are.
        latent_dims: sizes of the code to try; when None, as many as the teacher has active. A teacher of a smaller code is one
            with the rest pruned, trained on for an epoch.
        nll_samples: importance samples for each test image.
        distill: λ of (19); a VQ-VAE's students learn from the data alone.
        out: the folder to make, or to go on in: a student that was trained is not trained again. It holds `student.safetensors`,
            `pareto.csv`, `pareto.html`, and all students in `candidates/`.
        processes: how many students are trained at a time, each in a process of its own.
        latency_table: of this machine; the one kept for it when None.

    Returns: the student, and a table with a row for each one that was tried: name, widths, hidden, latent_dim, weight_bits; kb,
        macs and latency_us, measured, see `Cost`; epochs; rounded ("in training" or "after"); held_out, the bound, nats per
        image, of int8; nll and nll_loss on test images, where measured; within (the budget), front, chosen.

    Raises:
        ValueError: for settings that can't be, or a folder of another search.
        BudgetError: when no student is within the budget; it says how near one can come on each axis.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> from pyro_mvae.data import Split
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> data = Data("noise", Split(images), Split(images[:8]), binarization="none")
        >>> found = miniaturize(VAE((1, 8, 8), 4), data, budget=Budget(kb=30), minutes=0.01, nll_samples=1)
        >>> float(found.table["kb"][found.table["chosen"]].item()) < 30
        True
    """
    search = Search(
        budget, minutes, tuple(weight_bits), None if latent_dims is None else tuple(latent_dims), nll_samples, distill, seed
    )
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return searched(search, teacher, data, Path(folder), processes, latency_table, progress)
    claim(Path(out), search)
    return searched(search, teacher, data, Path(out), processes, latency_table, progress)


def claim(out: Path, search: Search) -> None:
    """Note what is searched for; a ValueError where the folder holds another search, or anything else."""
    path, wanted = out / "search.json", json.loads(json.dumps(asdict(search)))
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in wanted if held.get(name) != wanted[name]]
        if other:
            raise ValueError(
                f"{out} holds a search with {', '.join(f'{name} {held.get(name)}' for name in other)}: "
                "give the same, or another out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and holds no search: give another out")
    else:
        write_text(path, json.dumps(wanted, indent=2) + "\n")


def searched(
    search: Search, teacher: VAE, data: Data, out: Path, processes: int, table: LatencyTable | None, progress: Track
) -> Miniature:
    data, held = with_held_out(data, seed=search.seed)
    latents = search.latent_dims or (fitting_latents(teacher, data.train.images),)
    teachers = {size: taught(teacher, size, data, out) for size in latents}
    costs = laid_out(search, teachers, out, table, progress)
    if not costs:
        raise search.budget.unmet(known_costs(out).values())
    rows: dict[str, dict[str, Any]] = {}
    plans = list(costs)
    with tempfile.TemporaryDirectory() as shared:
        files = handed_over(teachers, data, held, Path(shared))
        for rung, epochs in schedule(search, plans, teachers, data, out, processes):
            plans = plans[: epochs[1]]
            jobs = [(plan, rung, epochs[0], search, str(files), str(out)) for plan in plans]
            done = side_by_side(trained, jobs, processes=processes) if processes > 1 else (trained(*job) for job in jobs)
            for row in progress(done, f"Students, round {rung + 1} of {len(RUNGS)}", len(jobs)):
                rows[row["name"]] = row
            plans.sort(key=lambda plan: rows[plan.name]["held_out"])
            plans = plans[: max(len(plans) // KEPT, 1)]
    frame = table_of({plan.name: cost for plan, cost in costs.items()}, list(rows.values()))
    frame = measured_on_test(frame, search, teacher, data, out, progress)
    return chosen(frame, search, out)


def with_held_out(data: Data, *, seed: int) -> tuple[Data, Tensor]:
    """The data without a tenth of its training images, and some of those."""
    images = data.train.images
    sides = torch.tensor(held_out([image.numpy().tobytes() for image in images], seed=seed))
    return replace(data, train=Split(images[~sides])), images[sides][:HELD_OUT]


def has_flat_code(teacher: VAE) -> bool:
    """Whether a smaller code is a matter of its dimensions; a VQ-VAE's is not."""
    return teacher.config["latent_dim"] == teacher.latent_dim


def fitting_latents(teacher: VAE, images: Tensor) -> int:
    """The size of the code that students are given: the dimensions that the teacher uses, where it has such."""
    return num_active(teacher.latent_activity(images[:10_000])) if has_flat_code(teacher) else teacher.config["latent_dim"]


def taught(teacher: VAE, latent_dim: int, data: Data, out: Path) -> VAE:
    """A teacher with a code of a size: pruned, and trained on where what is gone said something."""
    size = teacher.config["latent_dim"]
    if latent_dim == size:
        return folded(teacher)
    if not has_flat_code(teacher) or latent_dim > size:
        raise ValueError(f"latent_dims has {latent_dim}, expected {size} at most, the teacher's, and that alone for a VQ-VAE")
    smaller = PruneLatents(keep=latent_dim)(teacher, data.train.images)
    if latent_dim < fitting_latents(teacher, data.train.images):
        path = out / "candidates" / f"teacher-z{latent_dim}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        smaller, _ = fit_stage(smaller, data, path, resume=True, epochs=1, batch_size=BATCH_SIZE, lr=LR / 4)
    return folded(smaller)


def laid_out(
    search: Search, teachers: dict[int, VAE], out: Path, table: LatencyTable | None, progress: Track
) -> dict[Plan, Cost]:
    """The students to be trained, and what their files cost, measured; those as large as the budget allows first."""
    table = table or LatencyTable(LatencyTable.usual_path())
    known = known_costs(out)

    def cost(plan: Plan) -> Cost:
        if plan.name not in known:
            student = plan.student(teachers[plan.latent_dim])
            measured = cost_of(calibrated(Quantize(weight_bits=plan.weight_bits)(student)))
            known[plan.name] = asdict(measured)
            write_text(out / "costs.json", json.dumps(known, indent=1) + "\n")
        return Cost(**known[plan.name])

    teacher = next(iter(teachers.values()))
    plans = candidates(
        teacher, search.budget, latent_dims=tuple(teachers), weight_bits=search.weight_bits, latency=table.estimate
    )
    found: dict[Plan, Cost] = {}
    for plan in progress(plans, "Measuring costs", len(plans)):
        fitting, tried = within(plan, search.budget, cost)
        if fitting is not None:
            found[fitting] = tried[-1][1]
    if not plans:
        cost(Plan((4,), 4, min(teachers), min(search.weight_bits)))  # the least that a student can be
    return found


def known_costs(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "costs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def handed_over(teachers: dict[int, VAE], data: Data, held: Tensor, folder: Path) -> Path:
    """What every process needs, in files."""
    write(folder / DATA, {"images": data.train.images, "held": held}, {"binarization": data.binarization})
    for size, teacher in teachers.items():
        save_model(folder / f"teacher-{size}.safetensors", teacher)
    return folder


def schedule(
    search: Search, plans: Sequence[Plan], teachers: dict[int, VAE], data: Data, out: Path, processes: int
) -> Iterable[tuple[int, tuple[int, int]]]:
    """For each round its number, and (epochs, how many students): what the minutes are enough for. Made once, then kept."""
    path = out / "schedule.json"
    if path.is_file():
        return enumerate(tuple(pair) for pair in json.loads(path.read_text(encoding="utf-8")))
    seconds = seconds_an_epoch(plans[0], teachers[plans[0].latent_dim], data)
    left, rounds = len(plans), []
    for share in RUNGS:
        epochs_in_all = share * search.minutes * 60 * processes / seconds
        left = max(min(left, int(epochs_in_all)), 1)
        rounds.append((max(int(epochs_in_all / left), 1), left))
        left = max(left // KEPT, 1)
    write_text(path, json.dumps(rounds) + "\n")
    return enumerate(rounds)


def seconds_an_epoch(plan: Plan, teacher: VAE, data: Data) -> float:
    """Of one student alone, on one thread, distilled."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    few = replace(data, train=Split(data.train.images[:TIMED_IMAGES]))
    how: dict[str, Any] = {"epochs": 2, "batch_size": BATCH_SIZE, "penalties": lessons(teacher, 1.0), "compile": "eager"}
    try:
        history = fit(plan.student(teacher), few, **how)
    finally:
        torch.set_num_threads(threads)
    return float(history["seconds"].iloc[-1]) * len(data.train) / len(few.train)


def lessons(teacher: VAE, weight: float) -> list[Penalty]:
    """What a student learns from its teacher; nothing where q(z|x) is one point, as in a VQ-VAE: no KL is finite then."""
    return [] if teacher.point or not weight else [Distill(weight, teacher)]


def trained(plan: Plan, rung: int, epochs: int, search: Search, files: str, out: str) -> dict[str, Any]:
    """One round of one student: trained on from the round before, quantised, kept, and its row; read back if it was done."""
    folder = Path(out) / "candidates"
    folder.mkdir(parents=True, exist_ok=True)
    row_path = folder / f"{plan.name}-{rung}.json"
    if row_path.is_file():
        return json.loads(row_path.read_text(encoding="utf-8"))
    tensors, about = read(Path(files) / DATA)
    data = Data("search", Split(tensors["images"]), Split(tensors["held"]), binarization=about["binarization"])
    teacher = load_model(Path(files) / f"teacher-{plan.latent_dim}.safetensors")
    before = folder / f"{plan.name}-{rung - 1}.float.safetensors"
    model = load_model(before) if rung else plan.student(teacher, seed=search.seed)
    last = rung == len(RUNGS) - 1
    rounding = max(epochs // 4, 1) if last and epochs > 1 else 0
    common: dict[str, Any] = {"batch_size": BATCH_SIZE, "seed": search.seed + rung, "resume": True}
    taught_by = lessons(teacher, search.distill)
    path = folder / f"{plan.name}-{rung}.float.safetensors"
    model, _ = fit_stage(model, data, path, epochs=epochs - rounding, lr=LR, penalties=taught_by, **common)
    small = Quantize(weight_bits=plan.weight_bits)(model.eval(), data.train.images)
    if rounding:
        small = rounded_in_training(
            small, data, folder / f"{plan.name}-{rung}.rounding.safetensors", rounding, taught_by, common, bits=plan.weight_bits
        )
    done = epochs + (json.loads((folder / f"{plan.name}-{rung - 1}.json").read_text())["epochs"] if rung else 0)
    bound = negative_log_likelihood(small, data.test.images, num_samples=FEW_SAMPLES, binarization=data.binarization)
    row = {
        "name": plan.name,
        **asdict(plan),
        "epochs": done,
        "rounded": "in training" if rounding else "after",
        "held_out": round(bound.nats, 4),
    }
    save_model(folder / f"{plan.name}.safetensors", small)
    write_text(row_path, json.dumps(row) + "\n")
    return row


def rounded_in_training(
    small: VAE, data: Data, path: Path, epochs: int, taught_by: Sequence[Penalty], common: dict[str, Any], *, bits: int
) -> VAE:
    """Trained on with its rounding, the λ of (17) driven so that weights come to lie where rounding leaves them."""
    with torch.no_grad():
        target = ROUNDED * float(penalties.quantization_error(small, bits=bits) / penalties.l1(penalties.weights(small)))
    controllers = [OneCycle(), quantization_error(target, bits=bits)]
    terms = [*taught_by, Round(1e-4, bits=bits)]
    small, _ = fit_stage(small, data, path, epochs=epochs, lr=LR / 8, penalties=terms, controllers=controllers, **common)
    return small


def table_of(costs: dict[str, Cost], rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each student that was trained, the best first."""
    frame = pd.DataFrame([{**row, **asdict(costs[row["name"]])} for row in rows])
    frame["front"] = front(frame, [*Cost.__annotations__, "held_out"])
    return frame.sort_values("held_out", ignore_index=True)


def measured_on_test(frame: pd.DataFrame, search: Search, teacher: VAE, data: Data, out: Path, progress: Track) -> pd.DataFrame:
    """The table with the NLL on test images of all students of the front, and what it is above the teacher's."""
    path = out / "nll.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in ["teacher", *frame["name"][frame["front"]]]:
        if name not in known:
            model = teacher if name == "teacher" else load_model(out / "candidates" / f"{name}.safetensors")
            how: dict[str, Any] = {"binarization": data.binarization, "seed": search.seed, "progress": progress}
            what = {"num_samples": search.nll_samples, "description": f"NLL of {name}"}
            known[name] = negative_log_likelihood(model, data.test.images, **how, **what).nats
            write_text(path, json.dumps(known, indent=1) + "\n")
    frame["nll"] = frame["name"].map(known)
    frame["nll_loss"] = frame["nll"] - known["teacher"]
    return frame


def chosen(frame: pd.DataFrame, search: Search, out: Path) -> Miniature:
    """Choose, write what was found, and read the student."""
    budget = search.budget
    points: list[dict[str, float]] = [dict(zip(UNITS, map(float, row), strict=True)) for row in frame[list(UNITS)].to_numpy()]
    frame["within"] = [not budget.over(point) for point in points]
    first = frame.sort_values(by=["within", "held_out" if budget.costs() else "kb"], ascending=[False, True]).iloc[0]
    best = first["name"] if first["within"] else None
    frame["chosen"] = frame["name"] == best
    write_pareto(frame, search.budget, out)
    if best is None:
        raise budget.unmet(points)
    model = load_model(out / "candidates" / f"{best}.safetensors")
    save_model(out / "student.safetensors", model)
    return Miniature(model, frame, best)
