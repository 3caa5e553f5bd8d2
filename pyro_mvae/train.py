"""A model trained on a data set and kept in a file."""

from __future__ import annotations

import inspect
import math
import os
from dataclasses import replace
from typing import Any

import torch

from pyro_mvae.data import Data, load_data, num_batches
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.likelihood import NLL, negative_log_likelihood
from pyro_mvae.inference.checkpoint import path_for
from pyro_mvae.inference.history import write_csv, write_tensorboard
from pyro_mvae.inference.optimizers import OptimizerFactory, RootAdam
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
    net: str | None = None,
    num_clusters: int | None = None,
    likelihood: str | None = None,
    theta: str | None = None,
    size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    optimizer: str = "adam",
    guide_optimizer: str | None = None,
    guide_lr: float | None = None,
    kl_weight: float = 1.0,
    clip: float | None = None,
    ema: float | None = None,
    precision: str = "float32",
    compile: str = "auto",
    history: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Track = untracked,
) -> NLL:
    """Train a model on a data set, write it to `checkpoint`, and estimate its likelihood on the test set.

    Started by `torchrun`, its processes share the work, and the first one writes; see `pyro_mvae.inference.parallel`.

    Args:
        checkpoint: a `.safetensors` file to write; while training goes on, its state is beside it.
        data, size: as `load_data`.
        model: "vae", "vade", "gmvae", "infovae", "betavae", "vqvae", "svae", "vaegan" or "mvae"; "vade" and "gmvae" are
            started from an autoencoder and a mixture, see `VaDE.initialize`, "mvae" with clusters from pictures' neighbours.
        net: "conv", "mobile" or "mlp"; when None, what is usual for the model.
        num_clusters: of a "vade", "gmvae" or "mvae"; when None, ten, and none for the "mvae".
        epochs: when None, see `usual_epochs`.
        likelihood, theta: as `VAE`; when None, the likelihood suits the data: "bernoulli" for digits, "logistic" for the rest.
            Digits with another than "bernoulli" are grey, not binarised.
        device: "cpu", "cuda" or "cuda:1", …; under `torchrun`, "cuda" gives each process a device of its own.
        optimizer, guide_optimizer: of θ and φ: "adam", "adamw", "root-adam" (28), "rmsprop" or "sgd".
        guide_lr, kl_weight, clip, ema, precision, compile: as `fit`.
        history: a CSV file to write the history to, a row an epoch.
        tensorboard: a folder to write the history to for TensorBoard.
        overwrite: whether a checkpoint that is there may be replaced.
        resume: go on with a run that was interrupted, with the same settings.

    Raises:
        ValueError: for settings or data that can't be.
        FloatingPointError, Interrupted, ProcessLost: as `fit`.
        OSError: when the checkpoint can't be written.
    """
    path = path_for(checkpoint, overwrite=overwrite)
    kind = model_class(model)
    callbacks = [*([write_csv(history)] if history else []), *([write_tensorboard(tensorboard)] if tensorboard else [])]
    images = suited(load_data(data, size=size, seed=seed, progress=progress), likelihood)
    made = {"likelihood": likelihood, "theta": theta, **chosen(kind, net=net, num_clusters=num_clusters)}
    path.unlink(missing_ok=True)
    vae, _ = fit_stage(
        initialized(kind, images, latent_dim=latent_dim, seed=seed, **made).to(present(device)),
        images,
        path,
        optimizer=optimizer_class(optimizer),
        guide_optimizer=optimizer_class(guide_optimizer or optimizer),
        guide_lr=guide_lr,
        kl_weight=kl_weight,
        clip=clip,
        ema=ema,
        precision=precision,
        compile=compile,
        callbacks=callbacks,
        epochs=usual_epochs(len(images.train), batch_size=batch_size) if epochs is None else epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        resume=resume,
        initialize=True,
        progress=progress,
        description="Training",
    )
    return negative_log_likelihood(vae, images.test.images, binarization=images.binarization, seed=seed, progress=progress)


def chosen(kind: type[VAE], *, net: str | None, num_clusters: int | None) -> dict[str, Any]:
    """Arguments of a model for what was chosen, and nothing where the usual is wanted.

    Example:
        >>> chosen(VAE, net="mlp", num_clusters=None)
        {'net': 'mlp'}
    """
    if num_clusters is not None and "num_clusters" not in inspect.signature(kind).parameters:
        raise ValueError(f"a {kind.__name__} has no clusters: give num_clusters to a vade, gmvae or mvae")
    return {name: value for name, value in {"net": net, "num_clusters": num_clusters}.items() if value is not None}


def present(device: str) -> torch.device:
    """A device by name; ValueError when it is not there."""
    try:
        found = torch.device(device)
        if found.type == "cuda" and found.index is None and "LOCAL_RANK" in os.environ:
            found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"there is no device {device!r} here: {str(error).splitlines()[0]}") from error
    return found


OPTIMIZERS: dict[str, OptimizerFactory] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "root-adam": RootAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def optimizer_class(name: str) -> OptimizerFactory:
    """The optimiser of a name as the command line writes it.

    Example:
        >>> optimizer_class("rmsprop").__name__
        'RMSprop'
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimiser {name!r}, expected one of: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def usual_epochs(num_images: int, *, batch_size: int = 64) -> int:
    """Epochs enough for 1,250 steps, and 8 at least.

    Example:
        >>> usual_epochs(10_000), usual_epochs(1_700), usual_epochs(60_000)
        (8, 47, 8)
    """
    return max(8, math.ceil(1250 / num_batches(num_images, batch_size=batch_size)))


def data_for(model: VAE, spec: str, *, seed: int = 0, progress: Track = untracked) -> Data:
    """A data set as a model was trained on it: in its size, its pixels as its likelihood wants them, split by the seed."""
    return suited(load_data(spec, size=model.image_shape[1], seed=seed, progress=progress), model.config["likelihood"])


def suited(data: Data, likelihood: str | None) -> Data:
    """The data as a likelihood wants them: grey where it is one of shades."""
    return data if likelihood in (None, "bernoulli") else replace(data, binarization="none")


def initialized(
    kind: type[VAE],
    data: Data,
    *,
    latent_dim: int = 16,
    seed: int = 0,
    likelihood: str | None = None,
    theta: str | None = None,
    **more: Any,
) -> VAE:
    """A new model for a data set, its likelihood the one that suits it unless told; its weights follow from the seed."""
    likelihood = likelihood or ("bernoulli" if data.binarization == "dynamic" else "logistic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(data.shape, latent_dim, likelihood=likelihood, theta=theta, **more)
