"""A model whose nets are the files that an app loads: everything that is measured of a model can be measured of its files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mvae.export.capture import PARTS
from pyro_mvae.export.manifest import describe, digest_of, one_a_part
from pyro_mvae.export.verify import Artifact, load_artifact
from pyro_mvae.inference.checkpoint import digest, load_model
from pyro_mvae.models import VAE
from pyro_mvae.theta import Weights

FORMATS = ("executorch", "onnx", "coreml")
"""Which files of a folder are taken, the first format that has both parts."""
LEAST = 2.0**-20  # of a probability: files give pictures, models want their logits


class FileNet(nn.Module):
    """A file as a net: one call after the other, a batch put together from what they give."""

    def __init__(self, run: Callable[[Tensor], list[Tensor]]):
        super().__init__()
        self.run = run
        self.nothing = nn.Parameter(torch.zeros(0))  # says on which device the net is

    def __deepcopy__(self, memo: dict[int, Any]) -> FileNet:
        return type(self)(self.run)

    def called(self, x: Tensor) -> list[Tensor]:
        return [torch.cat(output) for output in zip(*(self.run(each.contiguous()) for each in x.split(1)), strict=True)]


class FileEncoder(FileNet):
    """x in [0, 1] → what the encoder's file gives for pixels of 0–255."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        outputs = self.called(255 * x)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]


class FileDecoder(FileNet):
    """z → the logits of the picture that the decoder's file gives."""

    def forward(self, z: Tensor) -> Tensor:
        return self.called(z)[0].clamp(LEAST, 1 - LEAST).logit()


def deployed(folder: str | os.PathLike[str], *, model: VAE | None = None, format: str | None = None) -> VAE:
    """The model in a folder, its encoder and decoder replaced by the files there.

    Args:
        folder: with a manifest that names both parts in one format.
        model: what the files were exported from; the checkpoint beside them that is of the manifest's model when None.
        format: which files are taken, "executorch", "onnx" or "coreml"; when None, the first of these that has both parts.

    Raises:
        ValueError: without a manifest, both parts, or a checkpoint; for a file that was changed, or another model.
    """
    folder = Path(folder)
    manifest = describe(folder)
    model = copy.deepcopy(model or model_in(folder, manifest["model"]["sha256"]))
    if digest(model) != manifest["model"]["sha256"]:
        raise ValueError(f"{folder} holds files of another model: give the checkpoint that they were exported from")
    runs = {part: artifact.run for part, artifact in artifacts(folder, manifest, format=format).items()}
    model.encoder, model.decoder = FileEncoder(runs["encoder"]), FileDecoder(runs["decoder"])
    if isinstance(model.theta, Weights):
        model.theta = None  # files have the weights of θ′ = 0 built in
    return model.eval()


def artifacts(folder: Path, manifest: dict[str, Any], *, format: str | None = None) -> dict[str, Artifact]:
    """Both parts, in one format; ValueError where one is not what the manifest says."""
    entries = entries_of(folder, manifest, format=format)
    for part in PARTS:
        check_file(folder, entries[part])
    return {part: load_artifact(folder / entries[part]["path"], function=entries[part].get("function")) for part in PARTS}


def entries_of(folder: Path, manifest: dict[str, Any], *, format: str | None = None) -> dict[str, Mapping[str, Any]]:
    """What a manifest says of both parts, in a format, or in the first that has both."""
    if format not in (None, *FORMATS):
        raise ValueError(f"format is {format!r}, expected one of: {', '.join(FORMATS)}")
    for each in FORMATS if format is None else (format,):
        entries = {entry["part"]: entry for entry in one_a_part(manifest["files"], each)}
        if set(PARTS) <= set(entries):
            return {part: entries[part] for part in PARTS}
    raise ValueError(
        f"{folder} has no encoder and decoder of {f'the format {format}' if format else 'one format'}: export both there"
    )


def check_file(folder: Path, entry: Mapping[str, Any]) -> None:
    """Raise a ValueError where a file is not what the manifest says."""
    path = folder / entry["path"]
    if not path.exists():
        raise ValueError(f"{path} is gone, its manifest names it: export it again")
    if digest_of(path) != entry["sha256"]:
        raise ValueError(f"{path} is not what its manifest says: export it again")


def model_in(folder: Path, sha256: str) -> VAE:
    """The checkpoint in a folder that is of a model."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            model = load_model(path)
        except ValueError:  # something else is kept there too
            continue
        if digest(model) == sha256:
            return model
    raise ValueError(f"{folder} has no checkpoint of the model that its files are of: give --checkpoint")
