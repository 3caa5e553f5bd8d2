"""What models cost: seconds an epoch, and KB and microseconds of the int8 files that an app would load."""

from __future__ import annotations

import copy
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mvae.atomic import write_text
from pyro_mvae.compress import Quantize
from pyro_mvae.data import Data
from pyro_mvae.data.batches import scaled
from pyro_mvae.environment import environment
from pyro_mvae.export import export_executorch
from pyro_mvae.export.capture import PARTS
from pyro_mvae.export.verify import inputs_for, load_artifact
from pyro_mvae.failures import reported
from pyro_mvae.inference.compiled import compile_gradients
from pyro_mvae.inference.layout import in_layout
from pyro_mvae.inference.objective import Objective
from pyro_mvae.inference.optimizers import make_optimizers
from pyro_mvae.inference.penalties import Penalty
from pyro_mvae.inference.run import Run
from pyro_mvae.inference.tracing import own_noise
from pyro_mvae.latency.timing import in_turns, ready
from pyro_mvae.models import VAE

COSTS = "costs.json"
TIMED_IMAGES, ROUNDS, CALLS = 1280, 3, 320
LR, LAYOUT = 1e-3, "channels_last"
P50 = f"median of {CALLS} calls of each file's runtime with one image, all files taking turns on one thread; both files' together"


@dataclass(frozen=True)
class Cost:
    """What a model costs: seconds an epoch; quantised for a phone, KB of both files, and µs to encode and decode, p50.

    The last two are None of a model whose files could not be made.
    """

    epoch_seconds: float
    int8_kb: float | None = None
    p50_us: float | None = None


def costs_of(
    models: Mapping[str, VAE],
    files: Mapping[str, Mapping[str, Path]],
    data: Data,
    *,
    penalties: Mapping[str, Sequence[Penalty]],
    batch_size: int,
    failures: dict[str, str],
    out: Path,
) -> dict[str, Cost]:
    """The cost of each model; files that are not there are made, and what fails is reported in `failures` and `out`.

    Seconds an epoch are the median of several rounds in which the models take turns, on part of an epoch.
    """
    few, times, costs = data.train.images[:TIMED_IMAGES], defaultdict[str, list[float]](list), {}
    how: dict[str, Any] = {"batch_size": batch_size, "binarization": data.binarization}
    epochs = {name: timed_epochs(model, few, penalties=penalties[name], **how) for name, model in models.items()}
    with own_noise():
        for _ in range(ROUNDS):
            for name in [name for name in models if f"{name}-epoch" not in failures]:
                with reported(failures, f"{name}-epoch", out):
                    times[name].append(next(epochs[name]) * len(data.train) / len(few))
    calls: dict[str, Callable[[], object]] = {}
    for name in times:
        with reported(failures, f"{name}-cost", out):
            if not all(path.exists() for path in files[name].values()):
                deploy(models[name], data, files[name])
            calls |= {f"{name}, {part}": one_image(part, path, models[name], data) for part, path in files[name].items()}
    p50 = {key: timing.p50_us for key, timing in in_turns(calls, runs=CALLS, seconds=0.01).items()}
    for name, some in times.items():
        costs[name] = Cost(statistics.median(some))
        if all(f"{name}, {part}" in p50 for part in files[name]):
            size = sum(path.stat().st_size for path in files[name].values())
            microseconds = sum(p50[f"{name}, {part}"] for part in files[name])
            costs[name] = Cost(statistics.median(some), round(size / 1000, 1), round(microseconds, 1))
    return costs


def one_image(part: str, path: Path, model: VAE, data: Data) -> Callable[[], object]:
    """A call of a file with one image, or its code."""
    return ready(load_artifact(path).run, inputs_for(part, model, data.test.images)[:1])


def timed_epochs(
    model: VAE, images: Tensor, *, penalties: Sequence[Penalty], batch_size: int, binarization: str
) -> Iterator[float]:
    """Seconds of one epoch after another, in `fit`'s steps where it does not compile, of a copy of a model; traced once."""
    model = copy.deepcopy(model).train()
    settings = {"num_images": len(images), "batch_size": batch_size, "epochs": ROUNDS, "seed": 0, "clip": None, "ema": None}
    optimizers = make_optimizers(model, optimizer=torch.optim.Adam, guide_optimizer=torch.optim.Adam, lr=LR, guide_lr=LR)
    run = Run(Objective(model, penalties), optimizers, settings)
    run.lay_out(LAYOUT)
    graph = compile_gradients(run.objective, in_layout(scaled(images[:batch_size]), LAYOUT))
    for x in run.steps(images, binarization=binarization):
        run.update(graph, x)
        if run.at_window:
            run.look()
            run.keep()
        if run.step == run.steps_per_epoch:
            yield run.finish_epoch()["seconds"]


def known_costs(out: Path, models: Iterable[str]) -> dict[str, Cost] | None:
    """The costs that were measured before, where they are whole, of all of the models, of this machine, and in this way."""
    path = out / "results" / COSTS
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"figures": {}}
    if not set(models) <= set(held["figures"]) or held["cpu"] != environment()["cpu"] or held["protocol"]["p50"] != P50:
        return None
    costs = {name: Cost(**held["figures"][name]) for name in models}
    return None if any(cost.int8_kb is None for cost in costs.values()) else costs


def write_costs(out: Path, costs: Mapping[str, Cost], *, batch_size: int) -> None:
    """Keep costs, and how they were measured."""
    protocol = {
        "s/epoch": f"steps as traced, not compiled: median of {ROUNDS} rounds in which models take turns, {TIMED_IMAGES} images "
        f"in batches of {batch_size}, for as many as an epoch has; threads: {torch.get_num_threads()}",
        "int8 KB": "encoder.pte and decoder.pte, in units of 1000 bytes",
        "p50": P50,
    }
    figures = {name: asdict(cost) for name, cost in costs.items()}
    content = {**environment(), "protocol": protocol, "figures": figures}
    write_text(out / "results" / COSTS, json.dumps(content, indent=2) + "\n")


def deployed(out: Path, name: str, seed: int) -> dict[str, Path]:
    """Where a model's int8 `.pte` files are, by their parts."""
    return {part: out / "files" / f"{name}-{seed}" / f"{part}.pte" for part in PARTS}


def deploy(model: VAE, data: Data, files: Mapping[str, Path]) -> None:
    """Write a trained model's int8 `.pte` files, their ranges set on training images."""
    small = Quantize()(model, data.train.images).eval()
    for part, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_executorch(small, path, part=part, images=data.test.images)
