"""Checkpoints: one safetensors file, its tensors, and in its header a JSON text that says what they are.

One file and not two, because one rename is atomic. Nothing is unpickled: a checkpoint can't run code.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyro_mvae import models
from pyro_mvae.atomic import atomic
from pyro_mvae.models import VAE
from pyro_mvae.nets.resize import resize
from pyro_mvae.nets.structure import restructured, structure

FORMAT = 2

logger = logging.getLogger(__name__)


class Damaged(ValueError):
    """A file is no checkpoint, or one that was cut short or changed."""


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and their description, atomically.

    Raises:
        OSError: when the path can't be written or the disk is full; what stood there before stays.
    """
    text = json.dumps({"format": FORMAT, **description})
    copies = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    header = {"pyro_mvae": text, "sha256": checksum(copies, text)}
    with atomic(path) as temporary:
        temporary.touch()  # with the permissions of any new file: safetensors' own are for the owner alone
        permissions = temporary.stat().st_mode
        try:
            save_file(copies, temporary, header)
        except SafetensorError as error:
            raise OSError(f"{path} can't be written: {error}") from error
        temporary.chmod(permissions)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description in a checkpoint.

    Raises:
        ValueError: when the file is missing, not a checkpoint of this package, or (as `Damaged`) cut short or changed.
    """
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint at {path}: expected a .safetensors file that `pyro-mvae train` or `build` wrote")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path} is damaged or no checkpoint: {error}") from error
    text = metadata.get("pyro_mvae")
    if text is None:
        raise ValueError(f"{path} is a safetensors file, but not one of pyro-mvae: its header does not say what model it holds")
    description = json.loads(text)
    if description["format"] > FORMAT:
        raise ValueError(f"{path} has format {description['format']}, this version reads up to {FORMAT}: upgrade pyro-mvae")
    if description["format"] > 1 and metadata.get("sha256") != checksum(tensors, text):
        raise Damaged(f"{path} is damaged: its content does not match its checksum")
    return tensors, description


def checksum(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 of a description and all tensors, their names, types and shapes included."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest(model: VAE) -> str:
    """SHA-256 of a model's tensors, what it was made with and what it went through.

    Example:
        >>> model, other = models.MVAE((1, 8, 8), 4), models.MVAE((1, 8, 8), 4)
        >>> digest(model) == digest(model), digest(model) == digest(other)
        (True, False)
    """
    return checksum(model.state_dict(), json.dumps([type(model).__name__, model.config, list(model.passes)]))


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is.

    Example:
        >>> previous(Path("state.safetensors")).name
        'state.previous.safetensors'
    """
    return path.with_suffix(f".previous{path.suffix}")


def claim(path: Path) -> None:
    """Raise a ValueError for a path with something on it that no run of training has written."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file to keep the state in")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(9)
        if len(start) == 9 and start[8:] != b"{":
            raise ValueError(f"{path} is there and is no checkpoint: give another name to keep the state under")


def write_keeping_previous(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """`write`, with what stood there before kept beside it."""
    fresh = path.with_suffix(f".fresh{path.suffix}")
    write(fresh, tensors, description)
    if path.exists():
        path.replace(previous(path))
    fresh.replace(path)


def read_or_previous(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`read`, or the checkpoint before where this one is damaged or missing, with a warning that names it.

    Raises:
        ValueError: when neither can be read.
    """
    before = previous(path)
    try:
        if path.exists() or not before.exists():
            return read(path)
        logger.warning("%s is missing: going on from the checkpoint before it, %s", path, before)
    except Damaged as error:
        if not before.exists():
            raise
        logger.warning("%s: going on from the checkpoint before it, %s", error, before)
    return read(before)


def exists(path: Path) -> bool:
    """Whether there is something to go on from."""
    return path.exists() or previous(path).exists()


def discard(path: Path) -> None:
    """Remove a run's checkpoint and the one before it."""
    path.unlink(missing_ok=True)
    previous(path).unlink(missing_ok=True)


def copied(description: Any) -> Any:
    """A copy of what JSON can hold, as reading it back would give."""
    return json.loads(json.dumps(description))


def path_for(checkpoint: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Where a model is to be written; ValueError for a name that is no checkpoint's, or a file that would be lost."""
    path = Path(checkpoint)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} does not end in .safetensors: give a name that does")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    return path


def save_model(path: str | os.PathLike[str], model: VAE, **notes: Any) -> None:
    """Write a model: its class, its constructor's arguments, the passes it went through, and its tensors.

    Args:
        notes: anything JSON can hold, kept beside the model.

    Raises:
        ValueError: for anything but a model.
        OSError: when the path can't be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "vae.safetensors"
        >>> save_model(path, models.MVAE((1, 28, 28)))
        >>> type(load_model(path)).__name__
        'MVAE'
    """
    if not isinstance(model, VAE):
        raise ValueError(f"the model is a {type(model).__name__}, expected a VAE: the path comes first, then the model")
    about = {"class": type(model).__name__, "config": model.config, "passes": model.passes}
    about["structure"] = structure(model.encoder, model.decoder)
    write(path, model.state_dict(), {"model": about, "notes": notes})


def load_model(path: str | os.PathLike[str], *, into: VAE | None = None) -> VAE:
    """Read a model that `save_model` wrote, pruned and quantised or not, in evaluation mode.

    Args:
        into: a model to fill instead of one made from the checkpoint: for classes or nets of your own. One that went through no
            pass goes through those of the checkpoint's first.

    Raises:
        ValueError: when the file is missing, damaged, or of another model.
    """
    tensors, description = read(path)
    if "model" not in description:
        raise ValueError(f"{path} holds the state of a training run, not a model: resume the run to finish it")
    about = description["model"]
    if into is None and about["class"] not in models.__all__:
        raise ValueError(f"{path} holds a {about['class']}, which is not of this package: give the model to fill with into=")
    model = into or getattr(models, about["class"])(**about["config"])
    if model.config.get("latent_dim") != about["config"].get("latent_dim"):
        sizes = [config.get("latent_dim") for config in (about["config"], model.config)]
        raise ValueError(f"{path} holds a model with latent_dim={sizes[0]}, the one given has {sizes[1]}: make it alike")
    if into is None or not model.passes:
        model.encoder, model.decoder = restructured(model.encoder, model.decoder, **about.get("structure", {}))
        resize(model, tensors)
    fill(model, tensors, source=path)
    model.passes = tuple(about["passes"])
    return model.eval()


def fill(module: nn.Module, tensors: dict[str, Tensor], *, source: object) -> None:
    """Copy tensors into a module's parameters and buffers; all names and shapes must be the module's.

    Raises:
        ValueError: naming the first tensor that is missing, too many, or of another shape.
    """
    state = module.state_dict()
    for name in [*state, *tensors]:
        if name not in tensors:
            raise ValueError(f"{source} is of another model: it has no tensor {name!r}{nearest(name, tensors)}")
        if name not in state:
            raise ValueError(f"{source} is of another model: its tensor {name!r} is not in {type(module).__name__}")
        expected, got = tuple(state[name].shape), tuple(tensors[name].shape)
        if expected != got:
            raise ValueError(f"{source} is of another model: {name!r} has shape {got}, expected {expected}")
    module.load_state_dict(tensors)


def nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (nearest: {close[0]!r})" if close else ""
