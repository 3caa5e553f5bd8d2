"""A round of the search: what one student does in it, in a process of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
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
from pyro_mvae.inference import penalties
from pyro_mvae.inference.checkpoint import load_model, read, save_model, write
from pyro_mvae.inference.penalties import Penalty, Round
from pyro_mvae.inference.precision import computed
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.inference.tuning import OneCycle, quantization_error
from pyro_mvae.models import VAE
from pyro_mvae.search.pace import Pace, batch_size, lessons
from pyro_mvae.search.plans import Plan
from pyro_mvae.side_by_side import each_by_itself

DATA = "data.safetensors"
LR = 4e-3
MOST_ROUNDING = 25
"""Epochs of the last stage, else a quarter of those there is time for: one of it takes longer, and few are enough."""
ROUNDED = 0.5
"""What the error of rounding is driven towards in the last stage, as a share of what it was before."""


@dataclass(frozen=True)
class Lesson:
    """What a student is told.

    Attributes:
        distill: λ of (19); 0 where it learns from the data alone.
        nll_samples: importance samples of the NLL that students are ranked by.
        importance_samples: K of the bound that is maximised, the ELBO for 1.
        seed: of weights and noise.
        files: the folder of what `handed_over` wrote.
        out: the folder of the search.
        rounded: whether the round ends with training with the rounding of the phone.
        precision: of `fit`; what is trained with its rounding is trained in float32.
        compile: of `fit`.
    """

    distill: float
    seed: int
    files: Path
    out: Path
    nll_samples: int
    importance_samples: int = 1
    rounded: bool = False
    precision: str = "float32"
    compile: str = "auto"


Row = dict[str, Any]
"""What came of a student in a round."""
Job = tuple[Plan, int, int, Lesson]
"""A student, its round, for how many epochs, and what it is told."""


def handed_over(teachers: dict[int, VAE], data: Data, held: Tensor, folder: Path) -> Path:
    """What every process needs, in files."""
    write(folder / DATA, {"images": data.train.images, "held": held}, {"binarization": data.binarization})
    for size, teacher in teachers.items():
        save_model(folder / f"teacher-{size}.safetensors", teacher)
    return folder


def assigned(plan: Plan, rung: int, seconds: float, lesson: Lesson, pace: Callable[[], Pace]) -> Job:
    """The job of a student in a round: decided once, by its pace, and kept, so that what was interrupted goes on as it began.

    It is decided anew on a processor that does not compute in what it was told, and the student begins this round anew.
    """
    path = kept_at(lesson.out, plan, rung, "job.json")
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if told.get("precision") not in computed(torch.device("cpu")):
        for state in path.parent.glob(f"{plan.name}-{rung}.*training*"):
            state.unlink()
        found = pace()
        told = {"epochs": found.epochs(seconds), "distill": lesson.distill if found.distilled else 0.0}
        told |= {"precision": found.precision, "compile": found.compile}
        write_text(path, json.dumps(told) + "\n")
    epochs = told.pop("epochs")
    return plan, rung, epochs, replace(lesson, **told)


def row_of(plan: Plan, rung: int, out: Path) -> Row | None:
    """What came of a student in a round; None where it is not done."""
    path = kept_at(out, plan, rung, "json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rounds_before(plan: Plan, rung: int, out: Path) -> dict[int, Row]:
    """What came of a student in the rounds before one of a number, by theirs, of those that it was in."""
    return {i: row for i in range(rung) if (row := row_of(plan, i, out)) is not None}


def kept_at(out: Path, plan: Plan, rung: int, kind: str) -> Path:
    """A file of a student's round, in the folder of a search."""
    return out / "candidates" / f"{plan.name}-{rung}.{kind}"


def attempted(plan: Plan, rung: int, epochs: int, lesson: Lesson) -> Row:
    """`trained`, or the reason, as `failed`, why a student came to no numbers."""
    try:
        return trained(plan, rung, epochs, lesson)
    except FloatingPointError as error:
        return {"name": plan.name, "failed": str(error).partition("; ")[0]}


def attempts(jobs: Sequence[Job], *, processes: int) -> Iterator[Row]:
    """What came of each student of a round, as it comes; none that fails stops another."""
    if processes == 1:
        yield from (attempted(*job) for job in jobs)
        return
    for (plan, *_), row in each_by_itself(attempted, jobs, processes=processes):
        yield row or {"name": plan.name, "failed": "its process was ended from outside: perhaps there was no memory left"}


def trained(plan: Plan, rung: int, epochs: int, lesson: Lesson) -> Row:
    """One round of one student: trained on from the one that it was in before, quantised, kept, and its row."""

    def kept(kind: str) -> Path:
        return kept_at(lesson.out, plan, rung, kind)

    tensors, about = read(lesson.files / DATA)
    data = Data("search", Split(tensors["images"]), Split(tensors["held"]), binarization=about["binarization"])
    teacher = load_model(lesson.files / f"teacher-{plan.latent_dim}.safetensors")
    done = rounds_before(plan, rung, lesson.out)
    earlier = done[max(done)] if done else {"epochs_before_rounding": 0}
    model = (
        load_model(kept_at(lesson.out, plan, max(done), "float.safetensors")) if done else plan.student(teacher, seed=lesson.seed)
    )
    rounding = min(max(epochs // 4, 1), MOST_ROUNDING) if lesson.rounded and epochs > 1 else 0
    common: dict[str, Any] = {"batch_size": batch_size(data), "seed": lesson.seed + rung, "resume": True}
    taught_by = lessons(teacher, lesson.distill, lesson.importance_samples)
    how: dict[str, Any] = {"penalties": taught_by, "precision": lesson.precision, "compile": lesson.compile, **common}
    model, _ = fit_stage(model, data, kept("float.safetensors"), epochs=epochs - rounding, lr=LR, **how)
    small = Quantize(weight_bits=plan.weight_bits)(model.eval(), data.train.images)
    driven: dict[str, float] = {}
    if rounding:
        small, driven = rounded_in_training(
            small, data, kept("rounding.safetensors"), rounding, taught_by, common, bits=plan.weight_bits
        )
    held_out = negative_log_likelihood(small, data.test.images, num_samples=lesson.nll_samples, binarization=data.binarization)
    if not math.isfinite(held_out.nats):
        raise FloatingPointError(f"the NLL of held-out images is {held_out.nats}")
    row = {
        "name": plan.name,
        **asdict(plan),
        "epochs": earlier["epochs_before_rounding"] + epochs,
        "epochs_before_rounding": earlier["epochs_before_rounding"] + epochs - rounding,
        "distilled": lesson.distill > 0 and not teacher.point,
        "rounded": "in training" if rounding else "after",
        **driven,
        "held_out": round(held_out.nats, 4),
    }
    save_model(kept("int8.safetensors"), small)
    write_text(kept("json"), json.dumps(row) + "\n")
    return json.loads(json.dumps(row))  # as it is read again


def rounded_in_training(
    small: VAE, data: Data, path: Path, epochs: int, taught_by: Sequence[Penalty], common: dict[str, Any], *, bits: int
) -> tuple[VAE, dict[str, float]]:
    """Trained on with its rounding, the λ of (17) driven so that weights come to lie where rounding leaves them.

    Also returns the share of the rounding error that is left, and the λ that it came to.
    """
    before = rounding_error(small, bits=bits)
    controllers = [OneCycle(), quantization_error(ROUNDED * before, bits=bits)]
    terms = [*taught_by, Round(1e-4, bits=bits)]
    how: dict[str, Any] = {"epochs": epochs, "lr": LR / 8, "penalties": terms, "controllers": controllers, **common}
    small, history = fit_stage(small, data, path, **how)
    left, weight = rounding_error(small, bits=bits) / before, float(history["round_weight"].iloc[-1])
    return small, {"rounding_left": round(left, 3), "rounding_weight": weight}


@torch.no_grad()
def rounding_error(model: VAE, *, bits: int) -> float:
    """Σ|w − w_q| / Σ|w|, (17) as a share of the weights."""
    return float(penalties.quantization_error(model, bits=bits) / penalties.l1(penalties.weights(model)))
