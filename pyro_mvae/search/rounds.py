"""A round of the search: how long it is, and what one student does in it, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mvae.atomic import write_text
from pyro_mvae.compress.quantize import Quantize
from pyro_mvae.data import Data
from pyro_mvae.data.images import Split
from pyro_mvae.evaluate.likelihood import negative_log_likelihood
from pyro_mvae.inference import fit, penalties
from pyro_mvae.inference.checkpoint import load_model, read, save_model, write
from pyro_mvae.inference.penalties import Distill, Penalty, Round
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.inference.tuning import OneCycle, quantization_error
from pyro_mvae.models import VAE
from pyro_mvae.search.plans import Plan

RUNGS = (0.3, 0.3, 0.4)
"""Shares of the time: for all students, for a third of them, and for a third of those, trained with rounding at last."""
KEPT = 3
DATA = "data.safetensors"
TIMED_IMAGES, FEW_SAMPLES = 1280, 5
BATCH_SIZE, LR, MANY = 64, 4e-3, 25_000
LEAST_EPOCHS = 4
"""Of each student in the first round, where there is time: after one, those that learn fast are ahead of those that get far."""
DEAR = 2.0
"""How many times as long an epoch with the teacher may take."""
ROUNDED = 0.5
"""The error that rounding is held to in the last stage, as a share of what it was before."""


@dataclass(frozen=True)
class Lesson:
    """What all students of a search are told.

    Attributes:
        distill: λ of (19); 0 where students learn from the data alone.
        seed: of weights and noise.
        files: the folder of what `handed_over` wrote.
        out: the folder of the search.
    """

    distill: float
    seed: int
    files: Path
    out: Path


def handed_over(teachers: dict[int, VAE], data: Data, held: Tensor, folder: Path) -> Path:
    """What every process needs, in files."""
    write(folder / DATA, {"images": data.train.images, "held": held}, {"binarization": data.binarization})
    for size, teacher in teachers.items():
        save_model(folder / f"teacher-{size}.safetensors", teacher)
    return folder


@dataclass(frozen=True)
class Schedule:
    """What the minutes are enough for.

    Attributes:
        rounds: for each (epochs, how many students).
        distilled: whether students learn from their teacher too.
    """

    rounds: list[tuple[int, int]]
    distilled: bool


def schedule(
    plans: Sequence[Plan], teachers: dict[int, VAE], data: Data, out: Path, *, minutes: float, processes: int, distill: float
) -> Schedule:
    """Made once, by the seconds of an epoch, then kept.

    Where an epoch with the teacher takes more than twice as long as one without, students learn from the data alone: more epochs
    teach them more.
    """
    path = out / "schedule.json"
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        return Schedule([(epochs, number) for epochs, number in held["rounds"]], held["distilled"])
    plan = plans[0]
    teacher = teachers[plan.latent_dim]
    alone = seconds = seconds_an_epoch(plan, teacher, data, [])
    distilled = bool(lessons(teacher, distill))
    if distilled:
        seconds = seconds_an_epoch(plan, teacher, data, lessons(teacher, distill))
        distilled = seconds <= DEAR * alone
    made = Schedule(rounds(len(plans), minutes * 60 * processes / (seconds if distilled else alone)), distilled)
    write_text(path, json.dumps(asdict(made)) + "\n")
    return made


def rounds(students: int, epochs: float) -> list[tuple[int, int]]:
    """So many epochs in all, shared by rounds and by the students of each, of which there are fewer where there is little time.

    Example:
        >>> rounds(12, 200), rounds(12, 3)
        ([(5, 12), (15, 4), (80, 1)], [(1, 1), (1, 1), (1, 1)])
    """
    made, left = [], students
    for share in RUNGS:
        left = max(min(left, int(share * epochs / LEAST_EPOCHS)), 1)
        made.append((max(int(share * epochs / left), 1), left))
        left = max(left // KEPT, 1)
    return made


def seconds_an_epoch(plan: Plan, teacher: VAE, data: Data, taught_by: Sequence[Penalty]) -> float:
    """Of one student alone, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    few = replace(data, train=Split(data.train.images[:TIMED_IMAGES]))
    how: dict[str, Any] = {"epochs": 2, "batch_size": batch_size(data), "penalties": taught_by, "compile": "eager"}
    try:
        history = fit(plan.student(teacher), few, **how)
    finally:
        torch.set_num_threads(threads)
    return float(history["seconds"].iloc[-1]) * len(data.train) / len(few.train)


def batch_size(data: Data) -> int:
    """Twice as large where there are steps enough all the same: an epoch takes less then."""
    return 2 * BATCH_SIZE if len(data.train) >= MANY else BATCH_SIZE


def lessons(teacher: VAE, weight: float) -> list[Penalty]:
    """What a student learns from its teacher; nothing where q(z|x) is one point, as in a VQ-VAE: no KL is finite then."""
    return [] if teacher.point or not weight else [Distill(weight, teacher)]


def trained(plan: Plan, rung: int, epochs: int, lesson: Lesson) -> dict[str, Any]:
    """One round of one student: trained on from the round before, quantised, kept, and its row; read back if it was done."""
    folder = lesson.out / "candidates"
    folder.mkdir(parents=True, exist_ok=True)
    row_path = folder / f"{plan.name}-{rung}.json"
    if row_path.is_file():
        return json.loads(row_path.read_text(encoding="utf-8"))
    tensors, about = read(lesson.files / DATA)
    data = Data("search", Split(tensors["images"]), Split(tensors["held"]), binarization=about["binarization"])
    teacher = load_model(lesson.files / f"teacher-{plan.latent_dim}.safetensors")
    before = folder / f"{plan.name}-{rung - 1}.float.safetensors"
    model = load_model(before) if rung else plan.student(teacher, seed=lesson.seed)
    last = rung == len(RUNGS) - 1
    rounding = max(epochs // 4, 1) if last and epochs > 1 else 0
    common: dict[str, Any] = {"batch_size": batch_size(data), "seed": lesson.seed + rung, "resume": True}
    taught_by = lessons(teacher, lesson.distill)
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
