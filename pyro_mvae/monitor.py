"""Watching a deployed folder (3.2): quality, drift and latency of its files on fresh data, against bounds in its manifest."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mvae import plots
from pyro_mvae.atomic import write_text
from pyro_mvae.data import Data, shown
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.environment import environment
from pyro_mvae.evaluate.drift import drift
from pyro_mvae.evaluate.likelihood import log_evidence
from pyro_mvae.export.deployed import artifacts, deployed, entries_of
from pyro_mvae.export.manifest import describe, digest_of, write_monitoring
from pyro_mvae.inference.checkpoint import read, write
from pyro_mvae.latency.timing import latency
from pyro_mvae.models import VAE
from pyro_mvae.numbers import count
from pyro_mvae.report import PAGE, html_picture, html_table

CODES, SERIES, PAGE_NAME = "monitor.safetensors", "monitor.jsonl", "monitor.html"
WRITTEN = (CODES, SERIES, PAGE_NAME)
SHARE_OF_TESTS = 1e-3
"""How often drift is told where there is none."""
STANDARD_ERRORS = 4.0
TIMES_AS_SLOW = 3.0
NAMES = {
    "nll": "−log p(x), nats an image",
    "reconstruction_error": "squared error a pixel",
    "drift_p": "p of drift",
    "p90_us": "µs to encode and decode, p90",
}


@dataclass(frozen=True)
class Reading:
    """What was measured of a folder's files at one time.

    Attributes:
        nll: −log p(x) in nats, the mean over images; importance samples as when the baseline was set.
        reconstruction_error: squared error a pixel of pictures of mean codes, in [0, 1]², the mean over images.
        drift, drift_p: MMD² between mean codes and those of training images, and its p-value, see `drift`.
        p90_us: µs to encode one image and to decode its code, one thread; None where Core ML runs the files, which is not here.
        crossed: bounds that do not hold.
    """

    when: str
    data: str
    num_images: int
    nll: float
    reconstruction_error: float
    drift: float
    drift_p: float
    p90_us: float | None
    crossed: tuple[str, ...] = ()


def set_baseline(
    folder: str | os.PathLike[str],
    data: Data,
    *,
    model: VAE | None = None,
    num_images: int = 500,
    num_samples: int = 10,
    seed: int = 0,
    format: str | None = None,
    progress: Track = untracked,
) -> dict[str, Any]:
    """Measure a folder's files on what their model was trained on, and note in its manifest what later readings are held to.

    Codes of training images are kept in `monitor.safetensors`. The bounds, which may be edited in the manifest: NLL and
    reconstruction error at most four standard errors of the difference of two means above those of test images, which data of
    the same kind and number cross in 1 of 30,000 readings; p of drift at least 0.001; latency at most three times what it is.

    Args:
        folder: with a manifest and both parts; see `deployed`.
        model: what the files were exported from; the checkpoint beside them when None.
        num_images, num_samples: of each reading; importance samples an image.
        format: which of a folder's files are watched, as `deployed`.

    Returns: the bounds.

    Raises:
        ValueError: as `deployed`, and for data of another shape.
    """
    count(num_images, "num_images", 2)
    count(num_samples, "num_samples")
    folder = Path(folder)
    vae = deployed(folder, model=model, format=format)
    how = {"num_images": num_images, "num_samples": num_samples, "binarization": data.binarization, "seed": seed}
    codes = codes_of(vae, some(data.train.images, num_images, seed=seed), data.binarization, seed=seed)
    write(folder / CODES, {"codes": codes}, {"data": data.name})
    nll, error = quality(vae, some(data.test.images, num_images, seed=seed), how, progress)
    bounds = {
        "nll": {"at_most": round(allowed(nll), 3)},
        "reconstruction_error": {"at_most": round(allowed(error), 6)},
        "drift_p": {"at_least": SHARE_OF_TESTS},
    }
    entries = entries_of(folder, describe(folder), format=format)
    slow = p90_us(folder, vae, format=entries["decoder"]["format"])
    if slow is not None:
        bounds["p90_us"] = {"at_most": round(TIMES_AS_SLOW * slow, 1)}
    about = {
        "data": data.name,
        "format": entries["decoder"]["format"],
        "cpu": environment()["cpu"],
        **how,
        "codes": {"path": CODES, "sha256": digest_of(folder / CODES)},
        "bounds": bounds,
    }
    write_monitoring(folder, about)
    return bounds


def monitor(
    folder: str | os.PathLike[str],
    data: Data,
    *,
    model: VAE | None = None,
    split: str = "test",
    progress: Track = untracked,
) -> Reading:
    """Measure a folder's files on fresh data and add the reading to `monitor.jsonl`; `monitor.html` draws them all.

    Args:
        folder: one that has a baseline, see `set_baseline`.
        data: what the app sees now.
        split: "test", or "all" where no image of the data was trained on.

    Returns: the reading, with the bounds that it crosses.

    Raises:
        ValueError: without a baseline, for an unknown split, data of another shape, files that were changed, or damaged readings.
    """
    if split not in ("test", "all"):
        raise ValueError(f"split is {split!r}, expected test or all")
    folder = Path(folder)
    about, before = baseline(folder), readings(folder)
    bounds = here(about)
    vae = deployed(folder, model=model, format=about.get("format"))
    images = data.test.images if split == "test" else torch.cat([data.train.images, data.test.images])
    images = some(images, about["num_images"], seed=about["seed"])
    nll, error = quality(vae, images, about, progress)
    codes = codes_of(vae, images, about["binarization"], seed=about["seed"])
    found = drift(read(folder / CODES)[0]["codes"], codes)
    measured = {
        "nll": round(float(nll.mean()), 4),
        "reconstruction_error": round(float(error.mean()), 6),
        "drift_p": found.p_value,
        "p90_us": p90_us(folder, vae, format=about.get("format")),
    }
    reading = Reading(
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        data=f"{data.name}, {split}",
        num_images=len(images),
        drift=round(found.statistic, 6),
        crossed=crossed(measured, bounds),
        **measured,
    )
    with (folder / SERIES).open("a", encoding="utf-8") as series:
        series.write(json.dumps(asdict(reading), ensure_ascii=False) + "\n")
    write_text(folder / PAGE_NAME, page([*before, reading], bounds))
    return reading


def here(about: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The bounds that hold on this machine: another processor's latency is not its own.

    Example:
        >>> here({"cpu": "another", "bounds": {"nll": {"at_most": 90.0}, "p90_us": {"at_most": 20.0}}})
        {'nll': {'at_most': 90.0}}
    """
    mine = environment()["cpu"]
    elsewhere = about.get("cpu", mine) != mine  # an older manifest does not say
    return {name: bound for name, bound in about["bounds"].items() if not (elsewhere and name == "p90_us")}


def baseline(folder: Path) -> dict[str, Any]:
    """What readings of a folder are held to; ValueError where that was never set, or its codes are others."""
    about = describe(folder).get("monitoring")
    if about is None:
        raise ValueError(f"{folder} has no baseline: set one with pyro-mvae monitor {folder} --baseline --data TRAINING-DATA")
    path = folder / about["codes"]["path"]
    if not path.is_file() or digest_of(path) != about["codes"]["sha256"]:
        raise ValueError(f"{path} is not what the manifest says: set the baseline again")
    return about


def readings(folder: Path) -> list[Reading]:
    """All readings of a folder, the oldest first.

    Raises:
        ValueError: where one is damaged.

    Example:
        >>> readings(Path("nowhere"))
        []
    """
    path = folder / SERIES
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            held = json.loads(line)
            found.append(Reading(**{**held, "crossed": tuple(held["crossed"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}, is damaged: remove it") from error
    return found


def some(images: Tensor, most: int, *, seed: int) -> Tensor:
    """So many images at most, by chance: those of a folder often come sorted."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:most]]


@torch.no_grad()
def quality(vae: VAE, images: Tensor, how: Mapping[str, Any], progress: Track) -> tuple[Tensor, Tensor]:
    """−log p(x) in nats, and the squared error a pixel, of each image."""
    check(vae, images)
    x = shown(images, binarization=how["binarization"], seed=how["seed"])
    nats, errors = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how["seed"])
        for few in progress(x.split(20), "Likelihood of the files", -(-len(x) // 20)):
            nats.append(-log_evidence(vae, few, how["num_samples"]))
            errors.append((vae.decode(vae.encode(few)) - few).square().mean((1, 2, 3)))
    return torch.cat(nats), torch.cat(errors)


@torch.no_grad()
def codes_of(vae: VAE, images: Tensor, binarization: str, *, seed: int) -> Tensor:
    """The means of q(z|x), (n, d)."""
    check(vae, images)
    return vae.encode(shown(images, binarization=binarization, seed=seed)).flatten(1)


def check(vae: VAE, images: Tensor) -> None:
    if tuple(images.shape[1:]) != vae.image_shape or len(images) < 2:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, expected (n, {str(vae.image_shape)[1:-1]}) with n of 2 or more"
        )


def allowed(values: Tensor) -> float:
    """A mean that another sample of as many seldom has: so many standard errors of the difference of two above this one's."""
    return float(values.mean() + STANDARD_ERRORS * values.std() * math.sqrt(2 / len(values)))


def p90_us(folder: Path, vae: VAE, *, format: str | None) -> float | None:
    """Microseconds to encode one image and to decode a code, by the files; None where they are not run but evaluated here."""
    shapes = {"encoder": (1, *vae.image_shape), "decoder": (1, vae.latent_dim)}
    parts = artifacts(folder, describe(folder), format=format)
    if any(artifact.format == "coreml" for artifact in parts.values()):
        return None
    each = [latency(artifact.run, torch.zeros(shapes[part])).p90_us for part, artifact in parts.items()]
    return round(sum(each), 1)


def crossed(measured: Mapping[str, float | None], bounds: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """The names of what is beyond its bound; a figure that is no number is.

    Example:
        >>> crossed({"nll": 90.0, "drift_p": 0.0005}, {"nll": {"at_most": 95.0}, "drift_p": {"at_least": 0.001}})
        ('drift_p',)
    """
    unknown = bounds.keys() - measured.keys()
    if unknown:
        raise ValueError(f"the manifest has bounds on {', '.join(sorted(unknown))}: expected them on {', '.join(measured)}")
    return tuple(
        name
        for name, bound in bounds.items()
        if not bound.get("at_least", -math.inf) <= number(measured[name]) <= bound.get("at_most", math.inf)
    )


def number(value: float | None) -> float:
    return math.nan if value is None else value


def page(series: list[Reading], bounds: Mapping[str, Mapping[str, float]]) -> str:
    """A page that needs no other file: each figure over time, with its bound, and all readings."""
    columns = {name: [number(getattr(reading, name)) for reading in series] for name in NAMES}
    header, rows = as_text(series)
    return PAGE.format(
        title="pyro-mvae: a deployed folder over time",
        tables=html_table(header, rows),
        note="Bounds are dotted; readings that cross one are red. Latency is of this machine: a proxy, no phone's.",
        pictures=html_picture("Readings", plots.series(columns, bounds, labels=NAMES)),
        facts=f"<dt>bounds</dt><dd>{html.escape(json.dumps(bounds))}</dd>",
    )


def as_text(series: list[Reading]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    header = ["when", "data", "images", "NLL", "error", "drift", "p", "p90 µs", "crossed"]
    rows = [
        [
            each.when,
            each.data,
            f"{each.num_images:,}",
            f"{each.nll:,.2f}",
            f"{each.reconstruction_error:.5f}",
            f"{each.drift:.5f}",
            f"{each.drift_p:.4f}",
            "–" if each.p90_us is None else f"{each.p90_us:,.1f}",
            ", ".join(each.crossed),
        ]
        for each in series
    ]
    return header, rows


def beside_bounds(reading: Reading, bounds: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: a reading's figures, and what they are held to."""

    def row(name: str, label: str) -> list[str]:
        bound = ", ".join(f"{end.replace('_', ' ')} {value:,.5g}" for end, value in bounds.get(name, {}).items())
        value = getattr(reading, name)
        return [label, "–" if value is None else f"{value:,.5g}", bound, "crossed" if name in reading.crossed else ""]

    return ["", "now", "bound", ""], [row(*each) for each in NAMES.items()]
