"""Checkpoints: one safetensors file, its tensors, and in its header a JSON text that says what they are.

One file and not two, because one rename is atomic. Nothing is unpickled: a checkpoint can't run code.
"""

from __future__ import annotations

import difflib
import json
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
from pyro_mvae.nets.quantized import is_quantized, quantized_pair
from pyro_mvae.nets.resize import resize

FORMAT = 1


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and their description, atomically.

    Raises:
        OSError: when the path can't be written or the disk is full; what stood there before stays.
    """
    header = {"pyro_mvae": json.dumps({"format": FORMAT, **description})}
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
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
        ValueError: when the file is missing, damaged, or not a checkpoint of this package.
    """
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint at {path}: expected a .safetensors file that `pyro-mvae train` or `build` wrote")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("pyro_mvae")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
    if header is None:
        raise ValueError(f"{path} is a safetensors file, but not one of pyro-mvae: its header does not say what model it holds")
    description = json.loads(header)
    if description["format"] > FORMAT:
        raise ValueError(f"{path} has format {description['format']}, this version reads up to {FORMAT}: upgrade pyro-mvae")
    return tensors, description


def save_model(path: str | os.PathLike[str], model: VAE, **notes: Any) -> None:
    """Write a model: its class, its constructor's arguments, the passes it went through, and its tensors.

    Args:
        notes: anything JSON can hold, kept beside the model.

    Raises:
        OSError: when the path can't be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "vae.safetensors"
        >>> save_model(path, models.MVAE((1, 28, 28)))
        >>> type(load_model(path)).__name__
        'MVAE'
    """
    about = {"class": type(model).__name__, "config": model.config, "passes": model.passes, "quantized": is_quantized(model)}
    write(path, model.state_dict(), {"model": about, "notes": notes})


def load_model(path: str | os.PathLike[str], *, into: VAE | None = None) -> VAE:
    """Read a model that `save_model` wrote, pruned and quantised or not, in evaluation mode.

    Args:
        into: a model to fill instead of one made from the checkpoint: for classes or nets of your own.

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
    if into is None and about["quantized"]:
        model.encoder, model.decoder = quantized_pair(model.encoder, model.decoder)
    if into is None:
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
