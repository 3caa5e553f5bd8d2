"""From images to a small VAE, exported and verified: the whole way in one call."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pyro_mvae import plots
from pyro_mvae._version import __version__
from pyro_mvae.atomic import remove, write_text
from pyro_mvae.data import Data, load_data
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.document import document
from pyro_mvae.environment import environment
from pyro_mvae.evaluate.cost import num_macs, num_params
from pyro_mvae.evaluate.likelihood import NLL, negative_log_likelihood
from pyro_mvae.export import export_coreml, export_executorch, export_onnx
from pyro_mvae.export.capture import PARTS
from pyro_mvae.export.manifest import NAME as MANIFEST
from pyro_mvae.export.snippets import NAME as README
from pyro_mvae.export.verify import Verification
from pyro_mvae.inference.checkpoint import save_model
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.models import VAE, model_class
from pyro_mvae.monitor import WRITTEN as MONITORED
from pyro_mvae.monitor import set_baseline
from pyro_mvae.origin import origin
from pyro_mvae.report import Report
from pyro_mvae.search import Budget, Student, make_student
from pyro_mvae.search.budget import KB
from pyro_mvae.train import initialized, usual_epochs

NEEDED_BYTES = 200_000_000
SETTINGS, CHECKPOINTS = "build.json", "checkpoints"
REPORTS = ("report.json", "report.html", MANIFEST, README, *MONITORED)

# file name, exporter, and what else it is told
FILES: dict[str, tuple[Callable[..., Verification], dict[str, str]]] = {
    "{}.pte": (export_executorch, {"precision": "int8"}),
    "{}.onnx": (export_onnx, {"precision": "int8"}),
    "{}.mlpackage": (export_coreml, {"precision": "int8"}),
    "{}-float16.mlpackage": (export_coreml, {"precision": "float16"}),
}


@dataclass(frozen=True)
class Settings:
    """What a build is asked for; kept in `build.json`, so that a run can be taken up again."""

    data: str = "digits"
    model: str = "mvae"
    budget_kb: float = 64
    epochs: int | None = None
    size: int | None = None
    seed: int = 0
    nll_samples: int = 50
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("budget_kb", "epochs", "nll_samples"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, expected more than 0")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        model_class(self.model)


def build(
    *,
    data: str = "digits",
    model: str = "mvae",
    budget_kb: float = 64,
    out: str | os.PathLike[str] = "build",
    epochs: int | None = None,
    size: int | None = None,
    seed: int = 0,
    nll_samples: int = 50,
    about: Mapping[str, str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Track = untracked,
) -> Report:
    """Train a VAE, miniaturise it to a budget, export it to Core ML, ExecuTorch and ONNX, verify each file, and report.

    Args:
        data: what to train on, see `load_data`.
        model: what the student is: "mvae", with mobile nets, or "vae", the teacher's kind but narrower.
        budget_kb: size of int8 `encoder.pte` and `decoder.pte` together, in units of 1000 bytes.
        out: the folder to make.
        epochs: of the teacher, and of the student's longest stage; when None, see `usual_epochs`.
        size: pixels a side, where the data are resized.
        nll_samples: importance samples for each test image.
        about: what Core ML packages say besides the data and the NLL: "author", "license", "version", see `export_coreml`.
        overwrite: whether a folder that is not empty may be written into; what an earlier build made there is replaced.
        resume: go on with the build that `out` holds, with the settings it was started with.
        progress: shows each long step.

    Returns: the report; also in `out` as `report.json` and `report.html`. What an app has to know of the files is in
        `manifest.json` there.

    Raises:
        ValueError: for settings, data or files that can't be; nothing is lost.
        BudgetError: when no student is small enough; checkpoints stay in `out`.
        FloatingPointError, Interrupted: as `fit`; checkpoints stay in `out`.
        OSError: when `out` can't be written or there is no room.
    """
    started = time.perf_counter()
    settings = Settings(data, model, budget_kb, epochs, size, seed, nll_samples, about or {})
    out = Path(out)
    settings = resumed(out) if resume else settings
    if not resume:
        check_empty(out, overwrite=overwrite)
    images = load_data(settings.data, size=settings.size, seed=settings.seed, progress=progress)
    settings = replace(settings, epochs=settings.epochs or usual_epochs(len(images.train)))
    if not resume:
        start(out, settings)
    teacher, student, histories = train(settings, images, out / CHECKPOINTS, resume=resume, progress=progress)
    save_model(out / "student.safetensors", student)
    likelihoods = [
        evaluated(settings, name, vae, images, progress) for name, vae in {"teacher": teacher, "student": student}.items()
    ]
    facts = {**settings.about, **origin(images, likelihoods[1])}
    artifacts = export_all(student, images, out, about=facts, progress=progress)
    check_budget(artifacts, settings.budget_kb)
    latencies = document(out, student, artifacts, images=images.test.images)
    set_baseline(out, images, model=student, seed=settings.seed, progress=progress)
    named = {"teacher": teacher, "student": student}
    report = Report(
        version=__version__,
        seed=settings.seed,
        data=about_data(images),
        teacher=about_teacher(teacher, likelihoods[0], histories["teacher"]["seconds"].median()),
        student=about_student(student, likelihoods[1]),
        artifacts=[about_file(out, item, latencies[item.path]) for item in artifacts],
        seconds=round(time.perf_counter() - started, 1),
        environment=environment(),
        figures={
            "Reconstructions of test images": plots.reconstructions(named, images.test.images),
            "Samples from the prior": plots.samples(named, seed=settings.seed),
            "Codes of test images": plots.latent_scatter(student, images.test),
            "Training": plots.training_curves(histories),
        },
    )
    report.write(out)
    return report


def train(settings: Settings, data: Data, folder: Path, *, resume: bool, progress: Track) -> tuple[VAE, VAE, dict[str, Any]]:
    """The teacher, the student, and their histories."""
    teacher = initialized(VAE, data, seed=settings.seed)
    common: dict[str, Any] = {"epochs": settings.epochs, "seed": settings.seed, "resume": resume, "progress": progress}
    teacher, history = fit_stage(teacher, data, folder / "teacher.safetensors", lr=4e-3, description="Teacher", **common)
    kind = model_class(settings.model)
    student: Student = make_student(teacher, data, kind=kind, budget_kb=settings.budget_kb, folder=folder, **common)
    return teacher, student.model, {"teacher": history, "student": student.history}


def export_all(student: VAE, data: Data, out: Path, *, about: dict[str, str], progress: Track) -> list[Verification]:
    """Export each part in each format, verified on test images."""
    jobs = [(name.format(part), part, *how) for name, how in FILES.items() for part in PARTS]
    return [
        export(
            student,
            out / name,
            part=part,
            images=data.test.images,
            **more,
            **({"about": about} if export is export_coreml else {}),
        )
        for name, part, export, more in progress(jobs, "Export and verify", len(jobs))
    ]


def check_budget(artifacts: list[Verification], budget_kb: float) -> None:
    total = sum(item.bytes for item in artifacts if item.format == "executorch")
    if total > budget_kb * KB:
        raise Budget(kb=budget_kb).unmet([{"kb": total / KB}])


def evaluated(settings: Settings, name: str, vae: VAE, data: Data, progress: Track) -> NLL:
    return negative_log_likelihood(
        vae,
        data.test.images,
        num_samples=settings.nll_samples,
        binarization=data.binarization,
        seed=settings.seed,
        progress=progress,
        description=f"NLL of the {name}",
    )


def about_data(data: Data) -> dict[str, Any]:
    """The report's `data`."""
    how = {"dynamic": "dynamic in training, one fixed draw of the test set for the NLL", "none": "none, 256 levels"}
    return {
        "name": data.name,
        "num_train": len(data.train),
        "num_test": len(data.test),
        "shape": list(data.shape),
        "binarization": how[data.binarization],
        "skipped": list(data.skipped),
    }


def about_teacher(teacher: VAE, nll: NLL, seconds_per_epoch: float) -> dict[str, Any]:
    """The report's `teacher`."""
    return {**about(teacher, nll), "seconds_per_epoch": round(float(seconds_per_epoch), 2)}


def about_student(student: VAE, nll: NLL) -> dict[str, Any]:
    """The report's `student`."""
    return {**about(student, nll), "bits_per_dim": round(nll.bits_per_dim, 5), "passes": list(student.passes)}


def about(vae: VAE, nll: NLL) -> dict[str, Any]:
    return {"params": num_params(vae), "macs": num_macs(vae), "nll": round(nll.nats, 3), "nll_samples": nll.num_samples}


def about_file(out: Path, item: Verification, latency: dict[str, float] | None) -> dict[str, Any]:
    """The report's entry for a file: what verifying found, and its latency where this machine can run it."""
    found = {name: getattr(item, name) for name in ("format", "part", "precision", "bytes", "max_abs_diff", "psnr_db")}
    return {"path": str(Path(item.path).relative_to(out)), **found, "p50_us": None, "p90_us": None, **(latency or {})}


def check_empty(out: Path, *, overwrite: bool) -> None:
    """Raise a ValueError for a folder that is in use, an OSError for one that can't hold a build."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder: give another --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        going_on = " or --resume to go on with the build there" if (out / SETTINGS).exists() else ""
        raise ValueError(f"{out} is not empty: give another --out, --overwrite to replace an earlier build{going_on}")
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if free < NEEDED_BYTES:
        raise OSError(f"{out} has {free / 1e6:.0f} MB of free space, a build needs {NEEDED_BYTES / 1e6:.0f} MB: make room")


def start(out: Path, settings: Settings) -> None:
    """Clear away what an earlier build made, and note what this one is."""
    for name in [*REPORTS, CHECKPOINTS, "student.safetensors", *(name.format(part) for name in FILES for part in PARTS)]:
        remove(out / name)
    write_text(out / SETTINGS, json.dumps(asdict(settings), indent=2) + "\n")


def resumed(out: Path) -> Settings:
    """The settings of the build in a folder."""
    path = out / SETTINGS
    if not path.is_file():
        raise ValueError(f"{out} holds no build to resume: it has no {SETTINGS}")
    return Settings(**json.loads(path.read_text(encoding="utf-8")))
