"""What the passes and the search reach, on all of MNIST and on colour emoji of 64×64.

pytest benchmarks/ -k compress --mnist DIR --emoji 'DIR/*.tar'

DIR holds MNIST's four idx files, or shards. Runs of hours go on where they were cut off: models wait in `benchmarks/runs/`, and a
search in a folder there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.interleave import interleaved, one_core
from pyro_mvae import VAE, Budget, Quantize, load_data, miniaturize, negative_log_likelihood, penalties
from pyro_mvae.compress import PruneChannels, PruneLatents, Shrink, SparseCode
from pyro_mvae.data import Data, Split
from pyro_mvae.evaluate import anomaly_auc, code_sparsity, reconstruction
from pyro_mvae.evaluate.cost import num_macs, num_params
from pyro_mvae.export.executorch import load_executorch, lower_parts
from pyro_mvae.export.verify import inputs_for
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.latency.timing import ready
from pyro_mvae.models import MVAE
from pyro_mvae.nets.quantized import as_floats, is_quantized
from pyro_mvae.search.budget import KB
from pyro_mvae.search.student import folded

RUNS = Path(__file__).parent / "runs"
SMALLER, FEWER_MACS, TENTH = 50, 30, 10
SAMPLES, MORE_SAMPLES = 25, 200
"""Of the NLL, which few overstate, the more the less an encoder says: what a student loses is measured by both."""


@dataclass(frozen=True)
class Case:
    """A data set, its teacher, and how long things are trained on it.

    `fit` is of what is trained from scratch, `more` the epochs after a pass, `rounding` those with rounding, `minutes` of each
    search in all (one that had fewer goes on), `sparse` the threshold and λ of (21), and `codes` how many are drawn in a search
    for multiply-adds.
    """

    option: str
    spec: str
    size: int | None
    latent_dim: int
    teacher: dict[str, Any]
    fit: dict[str, Any]
    shrink: Shrink
    pruned: float
    more: int
    rounding: int
    minutes: Mapping[str, float]
    sparse: tuple[float, float]
    codes: int


CASES = {
    "mnist": Case(
        option="--mnist",
        spec="mnist:{}",
        size=None,
        latent_dim=20,
        teacher={"widths": (48, 96, 192), "hidden": 384},
        fit={"epochs": 15, "batch_size": 128, "lr": 4e-3, "ema": 0.999, "seed": 0},
        shrink=Shrink(width=0.25),
        pruned=0.75,
        more=5,
        rounding=2,
        minutes={"size": 120, "tenth": 35, "macs": 120, "search": 120},
        sparse=(0.5, 0.5),
        codes=5,
    ),
    "emoji": Case(
        option="--emoji",
        spec="shards:{}",
        size=64,
        latent_dim=64,
        teacher={"widths": (24, 48, 96, 192), "hidden": 384, "likelihood": "logistic"},
        fit={"epochs": 40, "batch_size": 64, "lr": 3e-3, "ema": 0.995, "seed": 0},
        shrink=Shrink(width=0.25),
        pruned=0.75,
        more=10,
        rounding=4,
        minutes={"size": 20, "tenth": 20, "macs": 20, "search": 40},
        sparse=(1.0, 2.0),
        codes=1,
    ),
}


@dataclass(frozen=True)
class Subject:
    """A case with its data and its fitted teacher."""

    name: str
    case: Case
    data: Data
    teacher: VAE

    def path(self, stage: str) -> Path:
        return RUNS / f"compress-{stage}-{self.name}.safetensors"

    def fitted(self, stage: str, model: VAE, *, epochs: int | None = None, **more: Any) -> VAE:
        """A model, fitted or read."""
        how = {**self.case.fit, **({} if epochs is None else {"epochs": epochs}), **more}
        return fit_stage(model, self.data, self.path(stage), resume=True, **how)[0].eval()


@pytest.fixture(scope="module", params=CASES)
def subject(request: pytest.FixtureRequest) -> Subject:
    case = CASES[request.param]
    where = request.config.getoption(case.option)
    if not where:
        pytest.skip(f"give {case.option} what it needs")
    RUNS.mkdir(exist_ok=True)
    data = load_data(case.spec.format(where), size=case.size)
    torch.manual_seed(0)
    empty = Subject(request.param, case, data, VAE(data.shape, case.latent_dim, **case.teacher))
    return replace(empty, teacher=empty.fitted("teacher", empty.teacher))


def float_bytes(model: VAE) -> int:
    """What the numbers of a model take as they are."""
    return 4 * num_params(model)


def quality(model: VAE, data: Data) -> dict[str, float]:
    """On test images: NLL in nats, and PSNR in dB and SSIM of reconstructions."""
    pictures = {measured.name.lower(): round(measured.value, 4) for measured in reconstruction(model, data.test.images)}
    return {"nll": nll_of(model, data), **pictures}


def nll_of(model: VAE, data: Data, *, num_samples: int = SAMPLES) -> float:
    """Nats per test image."""
    images, binarization = data.test.images, data.binarization
    return round(negative_log_likelihood(model, images, num_samples=num_samples, binarization=binarization).nats, 3)


def files(model: VAE, folder: Path) -> dict[str, Path]:
    """The two `.pte` of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{part}.pte" for part in ("encoder", "decoder")}
    for part, content in lower_parts(model).items():
        paths[part].write_bytes(content)
    return paths


def calls(model: VAE, paths: Mapping[str, Path], images: Tensor) -> Callable[[], Any]:
    """Encode one image and decode a code, by the files."""
    encode, decode = (ready(load_executorch(path)[1], inputs_for(part, model, images)[:1]) for part, path in paths.items())
    return lambda: (encode(), decode())


def searched(subject: Subject, name: str) -> tuple[VAE, dict[str, Any]]:
    """The student that the search of a name finds: within the bound that it is called by, or, "search", within both.

    "size" is a fiftieth of the bytes, "tenth" a tenth of the multiply-adds, "macs" a thirtieth. Encoders of digits that are so
    small say little, and students but those of "tenth" are trained on the bound of several codes; those of colour pictures say
    enough.
    """
    teacher, case = subject.teacher, subject.case
    kb, macs = float_bytes(teacher) / SMALLER / KB, num_macs(teacher)
    budget = {
        "size": Budget(kb=kb),
        "tenth": Budget(macs=macs / TENTH),
        "macs": Budget(macs=macs / FEWER_MACS),
        "search": Budget(kb=kb, macs=macs / FEWER_MACS),
    }[name]
    how: dict[str, Any] = {"minutes": case.minutes[name], "precision": "fastest"}
    if name != "tenth":
        how["importance_samples"] = case.codes
    out = RUNS / f"compress-{name}-{subject.name}"
    found = miniaturize(teacher, subject.data, budget=budget, nll_samples=SAMPLES, out=out, **how)
    row = found.table[found.table["chosen"]].iloc[0]
    how["minutes"] = json.loads((out / "minutes.json").read_text(encoding="utf-8"))
    about = {"budget": budget.given(), **how, "name": found.name, "epochs": int(row["epochs"])}
    return found.model, about


def test_compress_ablation(subject, record, tmp_path):
    """Each pass alone, all in turn, and what the search finds, from one teacher: costs, likelihood, pictures, latency."""
    case, data, teacher = subject.case, subject.data, subject.teacher
    lesson = [penalties.Distill(1.0, folded(teacher))]
    threshold, weight = case.sparse
    small, about = searched(subject, "search")
    models = {
        "teacher": teacher,
        "shrink": subject.fitted("shrink", case.shrink(teacher)),
        "shrink and distil": subject.fitted("distil", case.shrink(teacher), penalties=lesson),
        "prune": subject.fitted("prune", PruneChannels(ratio=case.pruned)(teacher), epochs=case.more),
        "prune latents": subject.fitted("latents", PruneLatents()(teacher, data.train.images), epochs=1),
        "quantise": Quantize()(teacher, data.train.images).eval(),
        "quantise in training": subject.fitted("quantise", Quantize()(teacher), epochs=case.rounding, lr=case.fit["lr"] / 8),
        "sparse": subject.fitted(
            "sparse", SparseCode(threshold)(teacher), epochs=case.more, penalties=[penalties.Sparse(weight)]
        ),
        "together": together(subject),
        "searched": small,
    }
    costs = {name: files(model, tmp_path / name) for name, model in models.items()}
    with one_core():
        runs = {name: calls(model, costs[name], data.test.images) for name, model in models.items()}
        times = interleaved(runs, rounds=20, runs=10)
    rows = []
    for name, model in models.items():
        nonzeros, bits = code_sparsity(model, data.train, data.test)
        rows.append(
            {
                "name": name,
                "passes": list(model.passes),
                "precision": "int8" if is_quantized(model) else "float32",
                "kb": round(sum(path.stat().st_size for path in costs[name].values()) / KB, 1),
                "macs": num_macs(model),
                **quality(model, data),
                **times[name],
                "nonzeros": round(nonzeros.value, 2),
                "code_bits": round(bits.value, 1),
            }
        )
        print(rows[-1], flush=True)
    first, last = rows[0], rows[-1]
    figures = {
        "times_smaller": round(float_bytes(teacher) / KB / last["kb"], 1),
        "goal_times_smaller": SMALLER,
        "times_fewer_macs": round(first["macs"] / last["macs"], 1),
        "goal_times_fewer_macs": FEWER_MACS,
        "nll_loss": round(last["nll"] - first["nll"], 3),
        "goal_nll_loss": 1.0,
    }
    how = {"fit": case.fit, "more": case.more, "rounding": case.rounding, "search": about}
    record(f"compress-ablation-{subject.name}", {**figures, "nll_samples": SAMPLES, "how": how, "rows": rows})


def together(subject: Subject) -> VAE:
    """What was shrunk and distilled, with a quarter of its channels and all idle units pruned, its codes sparse, in int8."""
    case, images = subject.case, subject.data.train.images
    threshold, weight = case.sparse
    model = subject.fitted("distil", case.shrink(subject.teacher), penalties=[penalties.Distill(1.0, folded(subject.teacher))])
    model = subject.fitted("together-pruned", PruneChannels(0.25)(model), epochs=case.more)
    model = subject.fitted("together-latents", PruneLatents()(model, images), epochs=1)
    model = subject.fitted(
        "together-sparse", SparseCode(threshold)(model), epochs=case.more, penalties=[penalties.Sparse(weight)]
    )
    return subject.fitted("together", Quantize()(model), epochs=case.rounding, lr=case.fit["lr"] / 8)


@pytest.mark.parametrize("bound", ["size", "tenth", "macs"])
def test_compress_within(bound, subject, record):
    """A fiftieth of the teacher's bytes, or a tenth or a thirtieth of its multiply-adds, as many as it takes of the other."""
    small, about = searched(subject, bound)
    found = {
        name: {**quality(model, subject.data), "nll_of_more": nll_of(model, subject.data, num_samples=MORE_SAMPLES)}
        for name, model in {"teacher": subject.teacher, "student": small}.items()
    }
    kb = sum(map(len, lower_parts(small).values())) / KB
    figures = {
        "times_smaller": round(float_bytes(subject.teacher) / KB / kb, 1),
        "times_fewer_macs": round(num_macs(subject.teacher) / num_macs(small), 1),
        "nll_loss": round(found["student"]["nll"] - found["teacher"]["nll"], 3),
        "nll_loss_of_more": round(found["student"]["nll_of_more"] - found["teacher"]["nll_of_more"], 3),
        "goal_nll_loss": 1.0,
    }
    figures |= {"kb": kb, "nll_samples": SAMPLES, "more_samples": MORE_SAMPLES}
    record(f"compress-{bound}-{subject.name}", {**figures, "search": about, "rows": found})


def test_compress_int8(subject, record):
    """The same net in float32 and in int8: after training, and trained on with the rounding."""
    case, data, teacher = subject.case, subject.data, subject.teacher
    after = Quantize()(teacher, data.train.images).eval()
    trained = subject.fitted("quantise", Quantize()(teacher), epochs=case.rounding, lr=case.fit["lr"] / 8)
    found = {name: quality(model, data) for name, model in {"float32": teacher, "after": after, "in training": trained}.items()}
    losses = {name: round(found[name]["nll"] - found["float32"]["nll"], 3) for name in ("after", "in training")}
    record(f"compress-int8-{subject.name}", {"nll_loss": losses, "goal": 0.2, "nll_samples": SAMPLES, "rows": found})


def test_compress_four_bits(subject, record):
    """Weights of 4 bits and activations of 8, of the teacher's net: what its reconstructions lose."""
    case, data, teacher = subject.case, subject.data, subject.teacher
    quantized = Quantize(weight_bits=4, ranges="learned")(teacher, data.train.images)
    lesson = [penalties.Distill(1.0, folded(teacher))]
    model = subject.fitted("four-bits", quantized, epochs=case.rounding, lr=case.fit["lr"] / 4, penalties=lesson)
    found = {name: quality(each, data) for name, each in {"float32": teacher, "w4a8": model}.items()}
    loss = round(found["float32"]["psnr"] - found["w4a8"]["psnr"], 3)
    record(f"compress-four-bits-{subject.name}", {"psnr_loss_db": loss, "goal": 0.3, "rows": found})


def test_compress_latency(subject, record, tmp_path):
    """`.pte` in int8 against float32 of the same net, one image encoded and decoded, taking turns on one core."""
    data = subject.data
    small, _ = searched(subject, "search")
    nets = {"teacher": subject.teacher, "student": in_floats(small)}
    versions = {f"{name}, float32": net for name, net in nets.items()}
    versions["teacher, int8"] = Quantize()(subject.teacher, data.train.images).eval()
    versions["student, int8"] = small
    with one_core():
        runs = {name: calls(net, files(net, tmp_path / name), data.test.images) for name, net in versions.items()}
        times = interleaved(runs, rounds=40, runs=10)
    ratios = {
        name: {p: round(times[f"{name}, float32"][p] / times[f"{name}, int8"][p], 2) for p in ("p50_us", "p90_us")}
        for name in nets
    }
    macs = {name: num_macs(net) for name, net in nets.items()}
    record(f"compress-latency-{subject.name}", {"float32 to int8": ratios, "goal": 2.0, "macs": macs, "times": times})


def in_floats(model: VAE) -> VAE:
    """A copy whose nets compute in float32."""
    model = copy.deepcopy(model)
    model.encoder, model.decoder = as_floats(model.encoder), as_floats(model.decoder)
    return model.eval()


@pytest.mark.parametrize("left_out", [0, 4, 7])
def test_compress_anomaly(left_out, request, record):
    """A kind of digit that a small net never saw, told from the others: float32 against int8 of the same net."""
    where = request.config.getoption("--mnist")
    if not where:
        pytest.skip("give --mnist the folder of MNIST's idx files")
    data = load_data(f"mnist:{where}")
    normal = replace(data, train=without(data.train, left_out), test=without(data.test, left_out))
    assert data.test.labels is not None
    anomalous = data.test.images[data.test.labels == left_out]
    torch.manual_seed(0)
    how: dict[str, Any] = {"batch_size": 128, "seed": 0, "resume": True}
    path = RUNS / f"compress-anomaly-{left_out}.safetensors"
    model, _ = fit_stage(MVAE(data.shape, 20), normal, path, epochs=8, lr=4e-3, **how)
    after, quantized = (Quantize()(model.eval(), normal.train.images).eval() for _ in range(2))
    path = RUNS / f"compress-anomaly-{left_out}-int8.safetensors"
    small, _ = fit_stage(quantized, normal, path, epochs=3, lr=1e-3, penalties=[penalties.Distill(1.0, folded(model))], **how)
    found = {
        name: round(anomaly_auc(each, normal.test.images, anomalous, binarization=data.binarization).value, 5)
        for name, each in {"float32": model, "after training": after, "in training": small}.items()
    }
    losses = {name: round(found["float32"] - found[name], 5) for name in ("after training", "in training")}
    record(f"compress-anomaly-{left_out}", {"auc": found, "auc_loss": losses, "goal": 0.001})


def without(split: Split, label: int) -> Split:
    """The images of all other labels."""
    assert split.labels is not None
    kept = split.labels != label
    return Split(split.images[kept], labels=split.labels[kept])
