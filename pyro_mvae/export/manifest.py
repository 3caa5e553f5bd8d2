"""What an app or a server reads to load exported files: `manifest.json`, beside them. Its schema is in docs/manifest.md."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_mvae._version import __version__
from pyro_mvae.atomic import write_text
from pyro_mvae.environment import environment
from pyro_mvae.export.capture import PARTS, PREDICTIVE, Capture, capture
from pyro_mvae.export.delegation import delegation
from pyro_mvae.export.onnx import opset_of
from pyro_mvae.export.packages import DEFAULT_TARGETS, needs
from pyro_mvae.export.verify import Verification
from pyro_mvae.inference.checkpoint import digest
from pyro_mvae.likelihoods import LogisticLikelihood
from pyro_mvae.models import VAE
from pyro_mvae.nets.macs import macs_of

SCHEMA = 2
NAME = "manifest.json"
IN_EXECUTORCH = "Core ML in ExecuTorch"
AGAIN = "export the files again, to another folder or with --overwrite"
ASIDE = "give another folder, or --overwrite"
PIXELS_IN = {"meaning": "pixels, raw", "range": [0, 255]}
PIXELS_OUT = {"meaning": "pixels, the location of p(x|z)", "range": [0, 1]}
PIXELS_EXPECTED = {"meaning": "the mean of each pixel, over θ′ and x", "range": [0, 1]}


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        ValueError: when there is none, it is damaged, or of a newer schema.

    Example:
        >>> describe("nowhere")
        Traceback (most recent call last):
            ...
        ValueError: nowhere has no manifest.json: give a folder that files were exported to
    """
    file = Path(path) / NAME
    if not file.is_file():
        raise ValueError(f"{path} has no {NAME}: give a folder that files were exported to")
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        schema = held["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged, or no manifest of ours: {AGAIN}") from error
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}, expected {SCHEMA}, and is of another version of this package: {AGAIN}")
    return held


def check_manifest(folder: Path, model: VAE, *, overwrite: bool = False) -> None:
    """Raise a ValueError where a folder's manifest is of another model, or can't be read: it would be lost."""
    if (folder / NAME).is_file() and not overwrite and describe(folder)["model"]["sha256"] != digest(model):
        raise ValueError(f"{folder / NAME} is of another model: {ASIDE}")


def write_manifest(
    folder: Path,
    model: VAE,
    files: Iterable[Verification],
    *,
    latencies: Mapping[str, Mapping[str, float] | None] | None = None,
    overwrite: bool = False,
) -> None:
    """Note exported files of a model in the manifest of their folder; what it says of others of the same model stays.

    Files that are there no more are left out.

    Args:
        files: what verifying each found.
        latencies: p50 and p90 in µs, by paths, where they were measured.
        overwrite: whether a manifest that can't be read may be replaced.

    Raises:
        ValueError: for one that can't be read, and may not.
    """
    known = digest(model)
    try:
        held = describe(folder) if (folder / NAME).is_file() else None
    except ValueError:
        if not overwrite:
            raise
        held = None
    if held and held["model"]["sha256"] != known:
        held = None
    versions = {"pyro-mvae": __version__, **environment()}
    measured = latencies or {}
    new = [{**entry_of(folder, model, found), "latency": measured.get(found.path), "versions": versions} for found in files]
    made = {str(entry["path"]) for entry in new}
    before = held["files"] if held else []
    others = [entry for entry in before if entry["path"] not in made and (folder / entry["path"]).exists()]
    entries = {(entry["path"], entry["part"]): entry for entry in [*others, *new]}
    about = {"class": type(model).__name__, "config": model.config, "passes": list(model.passes), "sha256": known}
    content = {"schema": SCHEMA, "model": about, "files": [entries[key] for key in sorted(entries)]}
    if held and "monitoring" in held:
        content["monitoring"] = held["monitoring"]
    write_text(folder / NAME, json.dumps(content, indent=2) + "\n")


def write_monitoring(folder: Path, about: dict[str, Any]) -> None:
    """Note in the manifest of a folder what readings of its files are held to."""
    write_text(folder / NAME, json.dumps({**describe(folder), "monitoring": about}, indent=2) + "\n")


def entry_of(folder: Path, model: VAE, verification: Verification) -> dict[str, Any]:
    """What a manifest says of one file."""
    graph = capture(model, verification.part, precision=verification.precision)
    facts = asdict(verification)
    path = Path(facts.pop("path"))
    verified = {name: facts.pop(name) for name in ("max_abs_diff", "psnr_db", "rounding_psnr_db")}
    verified["images"] = facts.pop("num_images")
    asked: dict[str, Callable[[Path], dict[str, Any]]] = {
        "coreml": needs,
        "executorch": lambda path: lowered(path.read_bytes(), precision=verification.precision),
        "onnx": lambda path: {"opset": opset_of(path)},
    }
    return {
        "path": path.relative_to(folder).as_posix(),
        **facts,
        **asked[verification.format](path),
        "sha256": digest_of(path),
        "macs": part_macs(model, verification.part),
        **tensors_of(
            model, graph, type="float16" if verification.format == "coreml" else "float32", pictures=verification.pictures
        ),
        "verified": {**verified, "against": "PyTorch, at the same precision"},
    }


def lowered(content: bytes, *, precision: str) -> dict[str, Any]:
    """What a manifest says of a `.pte`: what runs it, and, where that is Core ML, the oldest system that does."""
    found = delegation(content)
    return {"delegation": asdict(found), **({"target": DEFAULT_TARGETS[precision]} if found.backend == "coreml" else {})}


def tensors_of(model: VAE, graph: Capture, *, type: str, pictures: str = "arrays") -> dict[str, list[dict[str, Any]]]:
    """What a manifest says of what goes into a part and what comes out, for a batch of one."""
    outputs = zip(graph.outputs, graph(graph.example), strict=True)
    image = {"type": f"image, {'grey' if model.image_shape[0] == 1 else 'RGB'}, 8 bits", "range": [0, 255]}
    as_seen = image if pictures == "images" else {}
    made = PIXELS_EXPECTED if graph.part == PREDICTIVE else PIXELS_OUT
    return {
        "inputs": [described(model, graph.input, graph.example, PIXELS_IN | as_seen, type)],
        "outputs": [described(model, name, tensor, made | as_seen, type) for name, tensor in outputs],
    }


def runtime_of(entry: Mapping[str, Any]) -> str:
    """What runs a file of a manifest: its format, or `IN_EXECUTORCH`, which is no Android app's.

    Example:
        >>> runtime_of({"format": "onnx"}), runtime_of({"format": "executorch", "delegation": {"backend": "coreml"}})
        ('onnx', 'Core ML in ExecuTorch')
    """
    return IN_EXECUTORCH if entry.get("delegation", {}).get("backend") == "coreml" else entry["format"]


def for_apple(entry: Mapping[str, Any]) -> bool:
    """Whether a file of a manifest is run by Core ML: a package, or a program for its delegate."""
    return runtime_of(entry) in ("coreml", IN_EXECUTORCH)


def one_a_part(files: Iterable[Mapping[str, Any]], runtime: str) -> list[Mapping[str, Any]]:
    """The first file of each part for a runtime: what a page shows and a monitor watches."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in files:
        if runtime_of(entry) == runtime:
            found.setdefault(entry["part"], entry)
    return list(found.values())


def checked_precision(path: str | os.PathLike[str], model: VAE) -> str | None:
    """The precision that the manifest beside a file has for it, where there is one that names it, checked to be of that file.

    Not every file says its precision itself.

    Raises:
        ValueError: where the manifest says that the file was another one, or of another model.
    """
    path = Path(path)
    if not path.exists() or not (path.parent / NAME).is_file():
        return None
    try:
        held = describe(path.parent)
    except ValueError:  # web apps have a manifest.json of another kind
        return None
    entry = {entry["path"]: entry for entry in held["files"]}.get(path.name)
    if entry is None:
        return None
    if entry["sha256"] != digest_of(path):
        raise ValueError(f"{path} is not what {NAME} beside it says, it was changed since: export it again")
    if held["model"]["sha256"] != digest(model):
        raise ValueError(f"{path} is of another model, as {NAME} beside it says: give the checkpoint that it was exported from")
    return entry["precision"]


def part_macs(model: VAE, part: str) -> int:
    """Multiply-adds of a part's net; of both, for what goes from an image through both.

    Example:
        >>> model = VAE((1, 8, 8))
        >>> part_macs(model, "anomaly") == part_macs(model, "encoder") + part_macs(model, "decoder")
        True
    """
    nets = model.deployable()
    of = {PREDICTIVE: ("decoder",), **{each: (each,) for each in PARTS}}
    return sum(macs_of(*nets[each]) for each in of.get(part, PARTS))


def described(model: VAE, name: str, tensor: Tensor, pixels: dict[str, Any], type: str) -> dict[str, Any]:
    """What a manifest says of a tensor."""
    if name in ("image", "picture"):
        about = pixels
    elif name == "sd":
        before = ", before x is rounded and ends at 0 and 1" if isinstance(model.likelihood, LogisticLikelihood) else ""
        about = {
            "meaning": f"the standard deviation of each pixel, 1 from black to white, over θ′ and x{before}",
            "range": [0, None],
        }
    elif name == "score":
        about = {"meaning": "−log p(x|mean of q(z|x)) a pixel and channel, nats; higher for what is unusual", "range": None}
    else:
        about = {"meaning": model.meanings[name], "range": [0, None] if name == "scale" else None}
    return {"name": name, "shape": list(tensor.shape), "type": type, **about}


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of a package: of the names and the contents of its files, in order."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
