"""The teacher, with a code of each size that students are to have."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pyro_mvae.compress.prune import PruneLatents, num_active
from pyro_mvae.data import Data
from pyro_mvae.data.images import spread
from pyro_mvae.inference.checkpoint import load_model, save_model
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.models import VAE
from pyro_mvae.numbers import count
from pyro_mvae.search.pace import BATCH_SIZE
from pyro_mvae.search.rounds import LR
from pyro_mvae.search.student import folded


def has_flat_code(teacher: VAE) -> bool:
    """Whether a smaller code is a matter of its dimensions; a VQ-VAE's is not."""
    return teacher.config["latent_dim"] == teacher.latent_dim


def fitting_latents(teacher: VAE, images: Tensor) -> int:
    """The size of the code that students are given: the dimensions that the teacher uses, where it has such."""
    return num_active(teacher.latent_activity(spread(images, 10_000))) if has_flat_code(teacher) else teacher.config["latent_dim"]


def check_latents(teacher: VAE, latent_dims: Sequence[int]) -> None:
    """Raise a ValueError for a code that the teacher can't be given."""
    size = teacher.config["latent_dim"]
    for latent_dim in latent_dims:
        count(latent_dim, "each of latent_dims")
        if latent_dim > size or (latent_dim < size and not has_flat_code(teacher)):
            raise ValueError(f"latent_dims has {latent_dim}, expected {size} at most, the teacher's, and that alone for a VQ-VAE")


def check_handed_over(teacher: VAE) -> None:
    """Raise a ValueError for a teacher that the processes of a search could not read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        save_model(path, teacher)
        try:
            load_model(path)
        except ValueError as error:
            raise ValueError(
                f"the teacher is a {type(teacher).__name__} of your own, or has nets that are, and a search can't make students "
                "of it: give a model and nets of this package, or make yours smaller with PruneChannels and Quantize"
            ) from error


def taught(teacher: VAE, latent_dim: int, data: Data, out: Path) -> VAE:
    """A teacher with a code of a size: pruned, and trained on where what is gone said something."""
    if latent_dim == teacher.config["latent_dim"]:
        return folded(teacher)
    smaller = PruneLatents(keep=latent_dim)(teacher, data.train.images)
    if latent_dim < fitting_latents(teacher, data.train.images):
        path = out / "candidates" / f"teacher-z{latent_dim}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        smaller, _ = fit_stage(smaller, data, path, resume=True, epochs=1, batch_size=BATCH_SIZE, lr=LR / 4)
    return folded(smaller)
