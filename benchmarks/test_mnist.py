"""The figures to reach on full MNIST, each on the protocol of the figure it is held against.

pytest benchmarks/ -k mnist --mnist DIR

DIR holds MNIST's four idx files. Runs of hours go on where they were cut off: models half trained wait in `benchmarks/runs/`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.by_hand import vae as by_hand
from benchmarks.interleave import one_core
from pyro_mvae import (
    GMVAE,
    MVAE,
    SVAE,
    VAE,
    Quantize,
    VaDE,
    document,
    export_coreml,
    export_executorch,
    fit,
    load_data,
    negative_log_likelihood,
    penalties,
)
from pyro_mvae.compress import Palettize
from pyro_mvae.data import Data, Split, binarize
from pyro_mvae.evaluate import clustering_accuracy
from pyro_mvae.export.capture import PARTS
from pyro_mvae.export.deployed import deployed
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.recipe import recipe_of

RUNS = Path(__file__).parent / "runs"
HELD_OUT = 10_000
SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def mnist(request: pytest.FixtureRequest) -> Data:
    folder = request.config.getoption("--mnist")
    if not folder:
        pytest.skip("give the folder of MNIST's idx files: --mnist DIR")
    RUNS.mkdir(exist_ok=True)
    return load_data(f"mnist:{folder}")


def fixed(data: Data) -> Data:
    """Each picture binarised once and for all, by seed 0."""

    def drawn(split: Split) -> Split:
        return replace(split, images=(255 * binarize(split.images, seed=0)).byte())

    return replace(data, train=drawn(data.train), test=drawn(data.test), binarization="none")


def held_out(data: Data) -> tuple[Data, Tensor]:
    """Training images without the last 10,000, and those, to choose by."""
    labels = data.train.labels
    assert labels is not None
    kept = Split(data.train.images[:-HELD_OUT], labels[:-HELD_OUT])
    return replace(data, train=kept), data.train.images[-HELD_OUT:]


def made(kind: type[VAE], seed: int, latent_dim: int, **more: Any) -> VAE:
    torch.manual_seed(seed)
    return kind(SHAPE, latent_dim, **more)


def likelihood(model: VAE, data: Data, test: Tensor, *, num_samples: int) -> dict[str, Any]:
    """Importance-sampled NLL, with its protocol."""
    return negative_log_likelihood(model, test, num_samples=num_samples, binarization=data.binarization).measurement().as_dict()


@pytest.mark.parametrize("seed", [0])
def test_vae_nll(seed, mnist, record):
    """784-400-z40 with ReLU, fixed binarisation, 50,000 images to train on, weights chosen on 10,000, 200 importance samples."""
    data, held = held_out(fixed(mnist))
    how: dict[str, Any] = {"epochs": 500, "batch_size": 100, "lr": 2e-4, "ema": 0.999, "seed": seed}
    path = RUNS / f"vae-{seed}.safetensors"
    model, history = fit_stage(made(VAE, seed, 40, net="mlp"), data, path, resume=True, keep="best", test=held, **how)
    nll = likelihood(model, data, data.test.images, num_samples=200)
    record(
        f"mnist-vae-nll-{seed}",
        {**how, "nll": nll["value"], "measured": nll, "goal": 89.5, "held_out_bound": history["test_loss"].min()},
    )


@pytest.mark.parametrize("seed", [0])
def test_svae_nll(seed, mnist, record):
    """784-256-128-z11 with ReLU, d = 10, dynamic binarisation, all 60,000 images, the last weights, 500 importance samples."""
    how: dict[str, Any] = {"epochs": 500, "batch_size": 100, "lr": 1e-3, "ema": 0.999, "seed": seed}
    path, nets = RUNS / f"svae-{seed}.safetensors", {"net": "mlp", "widths": (256,), "hidden": 128}
    model, history = fit_stage(made(SVAE, seed, 11, **nets), mnist, path, resume=True, **how)
    nll = likelihood(model, mnist, mnist.test.images, num_samples=500)
    about = {"nll": nll["value"], "measured": nll, "goal": 92.9, "training_bound": round(history["loss"].iloc[-1], 3)}
    record(f"mnist-svae-nll-{seed}", {**how, **about})


MOBILE: dict[str, Any] = {"widths": (24, 44, 76), "hidden": 160}
FIRST, SECOND = {"epochs": 60, "lr": 4e-3}, {"epochs": 3, "lr": 1e-3}


def mobile(data: Data, held: Tensor, seed: int, **passes: Any) -> dict[str, VAE]:
    """An MVAE without clusters and θ′, trained, as "float", and what each pass leaves of it once it is trained on."""
    how: dict[str, Any] = {"batch_size": 100, "ema": 0.999, "seed": seed, "keep": "best", "test": held, "resume": True}
    model, _ = fit_stage(made(MVAE, seed, 20, **MOBILE), data, RUNS / f"mvae-float-{seed}.safetensors", **FIRST, **how)
    paths = {name: RUNS / f"mvae-{name}-{seed}.safetensors" for name in passes}
    smaller = {name: fit_stage(each(model), data, paths[name], **SECOND, **how)[0] for name, each in passes.items()}
    return {"float": model, **smaller}


@pytest.mark.parametrize("seed", [0])
def test_mvae_nll(seed, mnist, record, tmp_path):
    """Mobile nets, rounded to int8 as they are trained on, with the VAE's data and estimator: KB of both files, and NLL."""
    data, held = held_out(fixed(mnist))
    models, test = mobile(data, held, seed, int8=Quantize()), data.test.images
    sizes = [export_executorch(models["int8"], tmp_path / f"{part}.pte", part=part, images=test).bytes for part in PARTS]
    nll = {name: likelihood(model, data, test, num_samples=200) for name, model in models.items()}
    about = {"seed": seed, "batch_size": 100, "ema": 0.999, "float": FIRST, "int8": SECOND, **MOBILE}
    values = {name: each["value"] for name, each in nll.items()}
    record(
        f"mnist-mvae-nll-{seed}",
        {**about, "nll": values, "measured": nll, "int8_kb": sum(sizes) / 1000, "goal": 89.5, "goal_kb": 128},
    )


def test_coreml_precisions(mnist, measured, record, tmp_path):
    """That MVAE as Core ML packages of every precision: KB of both, and the NLL of test images by evaluating them."""
    data, held = held_out(fixed(mnist))
    models = mobile(data, held, 0, palettes6=Palettize(bits=6), palettes4=Palettize(bits=4), int8=Quantize())
    model = models["float"]
    images, num_samples = data.test.images[:1000], 50
    subjects = {
        **{("none", each): (model, each) for each in ("float16", "int8_weights", "int4")},
        **{("none", f"{bits}-bit palettes"): (Palettize(bits=bits)(model), "palettized") for bits in (6, 4)},
        ("trained on", "6-bit palettes"): (models["palettes6"], "palettized"),
        ("trained on", "4-bit palettes"): (models["palettes4"], "palettized"),
        ("trained on", "int8"): (models["int8"], "int8"),
    }

    def measure(training: str, precision: str) -> dict[str, Any]:
        small, kind = subjects[training, precision]
        out = tmp_path / f"{training}-{precision}"
        files = [export_coreml(small, out / f"{part}.mlpackage", part=part, precision=kind, images=images) for part in PARTS]
        document(out, small, files, images=images)
        nll = likelihood(deployed(out, model=small, format="coreml"), data, images, num_samples=num_samples)
        return {"kb": sum(each.bytes for each in files) / 1000, "nll": round(nll["value"], 3), "protocol": nll["protocol"]}

    cases = [{"training": training, "precision": precision} for training, precision in subjects]
    rows = measured("mnist-coreml-precisions", cases, measure)
    exact = round(likelihood(model, data, images, num_samples=num_samples)["value"], 3)
    record("mnist-coreml-precisions", {"num_images": len(images), "float32_nll": exact, "trained_on": SECOND, "rows": rows})


CLUSTERED: dict[str, tuple[type[VAE], float]] = {"vade": (VaDE, 94.5), "gmvae": (GMVAE, 90.0), "mvae": (MVAE, 97.2)}


@pytest.mark.parametrize("name", CLUSTERED)
def test_clustering(name, mnist, measured, record):
    """Accuracy on the 10,000 test images, from scratch, started from nearest neighbours: mean and sd of 5 seeds.

    All have mobile nets and the penalty on clusters that change when pictures are moved; the mVAE has all of its recipe.
    """
    (kind, goal), recipe = CLUSTERED[name], recipe_of(name, num_clusters=10)
    also = recipe.penalties or (penalties.Invariant(50.0),)
    start: dict[str, Any] = {"epochs": 10, "batch_size": 250, "lr": 6e-3}
    how: dict[str, Any] = {"epochs": 10, "batch_size": 250, "lr": 4e-3}

    def measure(seed: int) -> dict[str, Any]:
        model = made(kind, seed, 16, net="mobile", **recipe.made_with)
        seconds = model.initialize(mnist, start="neighbours", seed=seed, **start)  # pyright: ignore[reportCallIssue]
        path = RUNS / f"{name}-{seed}.safetensors"
        more: dict[str, Any] = {"penalties": also, "controllers": recipe.controllers, "seed": seed}
        model, history = fit_stage(model, mnist, path, resume=True, **more, **how)
        found = clustering_accuracy(model, mnist.train, mnist.test, seed=seed)
        epoch = float(history["seconds"].median())
        about = {"start_seconds": round(seconds, 1), "seconds_an_epoch": round(epoch, 2), "protocol": found.protocol}
        return {"accuracy": round(found.value, 2), "split": found.split, "num_images": found.num_images, **about}

    rows = measured(f"mnist-{name}-clustering", [{"seed": seed} for seed in range(5)], measure)
    accuracies = [row["accuracy"] for row in rows]
    mean, sd = round(statistics.fmean(accuracies), 2), round(statistics.stdev(accuracies), 2)
    about = {"start": start, "fit": how, "recipe": repr(recipe), "penalties": repr(also)}
    record(f"mnist-{name}-clustering", {"goal": goal, "mean": mean, "sd": sd, **about, "rows": rows})


def test_seconds_an_epoch(mnist, record):
    """784-400-20, 60,000 images in batches of 128, on one core: the step by hand and `fit`'s, taking turns, part of an epoch."""
    part = mnist.train.images[:12_800]
    share = len(mnist.train) / len(part)
    with one_core():
        hand, ours = [], []
        for seed in range(5):
            hand.append(share * statistics.median(epoch_by_hand(part, seed) for _ in range(5)))
            ours.append(share * epoch_of_fit(part, seed))
    figures = {"by_hand": round(statistics.median(hand), 2), "ours": round(statistics.median(ours), 2)}
    record("mnist-seconds-an-epoch", {**figures, "ratio": round(figures["ours"] / figures["by_hand"], 3)})


def test_mvae_seconds_an_epoch(mnist, record):
    """The mVAE of its recipe against the plain VAE, both with their usual nets, taking turns on one core."""
    recipe = recipe_of("mvae", num_clusters=10)
    part = Data("part", Split(mnist.train.images[:8_000]), Split(mnist.test.images[:2]), binarization="dynamic")  # whole batches
    share = len(mnist.train) / len(part.train)
    cases: dict[str, tuple[Callable[[], VAE], tuple[penalties.Penalty, ...]]] = {
        "vae": (lambda: made(VAE, 0, 16), ()),
        "mvae": (lambda: made(MVAE, 0, 16, **recipe.made_with), recipe.penalties),
    }
    figures = {}
    with one_core():
        for batch_size in (64, 250):
            how: dict[str, Any] = {"epochs": 5, "batch_size": batch_size, "lr": 1e-3, "compile": "inductor"}
            times: dict[str, list[float]] = {name: [] for name in cases}
            for _ in range(5):
                for name, (make, also) in cases.items():
                    history = fit(make(), part, penalties=also, **how)
                    times[name].append(share * float(history["seconds"].iloc[1:].median()))
            figures[batch_size] = {name: round(statistics.median(some), 2) for name, some in times.items()}
    record("mnist-mvae-seconds-an-epoch", figures)


def epoch_by_hand(images: Tensor, seed: int) -> float:
    """Eager PyTorch, as one would write it: pictures in memory, a permutation, binarisation, Adam."""
    model, x = mlp(seed), images.float() / 255
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    begun = time.perf_counter()
    for chosen in torch.randperm(len(x)).split(128):
        optimizer.zero_grad()
        by_hand(model, torch.bernoulli(x[chosen])).backward()
        optimizer.step()
    return time.perf_counter() - begun


def epoch_of_fit(images: Tensor, seed: int) -> float:
    data = Data("part", train=Split(images), test=Split(images[:2]), binarization="dynamic")
    return float(fit(mlp(seed), data, epochs=6, batch_size=128, lr=1e-3, compile="inductor")["seconds"].iloc[1:].median())


def mlp(seed: int) -> VAE:
    return made(VAE, seed, 20, net="mlp")
