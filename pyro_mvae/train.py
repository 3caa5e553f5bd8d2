"""A model trained on a data set and kept in a file."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from pyro_mvae.data import Data, load_data, num_batches
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.likelihood import NLL, negative_log_likelihood
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.models import VAE, model_class


def train(
    checkpoint: str | os.PathLike[str],
    *,
    data: str = "digits",
    model: str = "vae",
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 4e-3,
    latent_dim: int = 16,
    size: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    progress: Track = untracked,
) -> NLL:
    """Train a model on a data set, write it to `checkpoint`, and estimate its likelihood on the test set.

    Args:
        checkpoint: a `.safetensors` file to write; while training goes on, its state is beside it.
        data, size: as `load_data`.
        model: "vae" or "mvae".
        epochs: when None, see `usual_epochs`.
        overwrite: whether a checkpoint that is there may be replaced.
        resume: go on with a run that was interrupted, with the same settings.

    Raises:
        ValueError: for settings or data that can't be.
        FloatingPointError, Interrupted: as `fit`.
        OSError: when the checkpoint can't be written.
    """
    path = Path(checkpoint)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} does not end in .safetensors: give a name that does")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    kind = model_class(model)
    images = load_data(data, size=size, seed=seed, progress=progress)
    path.unlink(missing_ok=True)
    vae, _ = fit_stage(
        initialized(kind, images, latent_dim=latent_dim, seed=seed),
        images,
        path,
        epochs=usual_epochs(len(images.train), batch_size=batch_size) if epochs is None else epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        resume=resume,
        progress=progress,
        description="Training",
    )
    return negative_log_likelihood(vae, images.test.images, binarization=images.binarization, seed=seed, progress=progress)


def usual_epochs(num_images: int, *, batch_size: int = 64) -> int:
    """Epochs enough for 1,250 steps, and 8 at least.

    Example:
        >>> usual_epochs(10_000), usual_epochs(1_700), usual_epochs(60_000)
        (8, 47, 8)
    """
    return max(8, math.ceil(1250 / num_batches(num_images, batch_size=batch_size)))


def initialized(kind: type[VAE], data: Data, *, latent_dim: int = 16, seed: int = 0) -> VAE:
    """A new model for a data set, its likelihood the one that suits it; its weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(data.shape, latent_dim, likelihood="bernoulli" if data.binarization == "dynamic" else "logistic")
