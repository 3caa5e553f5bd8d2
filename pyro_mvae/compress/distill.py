"""Distilling: a small model learns from the data and from a large one at once, (19)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pyro_mvae.data import Data
from pyro_mvae.inference import fit
from pyro_mvae.inference.penalties import Distill, MatchFeatures, Penalty
from pyro_mvae.models import VAE
from pyro_mvae.nets.fold import fold_batch_norm


def distill(
    teacher: VAE, student: VAE, data: Data, *, weight: float = 1.0, features: float = 0.0, train: str = "both", **settings: Any
) -> pd.DataFrame:
    """Fit a student to data and to a teacher: bound + λ (KL of posteriors + KL of likelihoods), (19), + λ_f features.

    The student may have other nets and sizes than the teacher; images, latent size and kinds of distributions are the same.

    Args:
        teacher: a fitted model; left as it is.
        student: trained in place.
        weight: λ.
        features: λ_f, of `MatchFeatures`; 0 leaves it out.
        train: "both" nets, or the "decoder" alone: the student is then given the teacher's encoder, folded, as it is, so that
            codes mean the same to both. The recipe of tiny decoders; kinds of nets and numbers of widths are then the same.
        settings: as `fit`; more `penalties` are added.

    Returns: the history.

    Raises:
        ValueError: for another teacher than that, or nets that can't be shared.

    Example:
        >>> import torch
        >>> from pyro_mvae.data import Split
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> data = Data("noise", Split(images), Split(images[:8]), binarization="none")
        >>> teacher, student = VAE((1, 8, 8), 4), VAE((1, 8, 8), 4, widths=(8, 8), hidden=16)
        >>> history = distill(teacher, student, data, features=0.1, train="decoder", epochs=1, batch_size=32)
        >>> {"distill", "match_features"} <= set(history)
        True
    """
    if train not in ("both", "decoder"):
        raise ValueError(f"train is {train!r}, expected both or decoder")
    penalties: list[Penalty] = [Distill(weight, teacher), *settings.pop("penalties", ())]
    if features:
        penalties.append(MatchFeatures(features, teacher))
    if train == "decoder":
        check_same_kind(teacher, student)
        student.encoder = fold_batch_norm(teacher.encoder).requires_grad_(False)
    try:
        return fit(student, data, penalties=penalties, **settings)
    finally:
        student.encoder.requires_grad_(True)


def check_same_kind(teacher: VAE, student: VAE) -> None:
    """Raise a ValueError where a student can't be given its teacher's encoder."""
    theirs, mine = (
        (type(model).__name__, model.config["net"], len(model.config["widths"]), model.latent_dim) for model in (teacher, student)
    )
    if theirs != mine:
        raise ValueError(
            "a student is given its teacher's encoder where class, net, number of widths and latent size are the same, "
            f"and they are {theirs} and {mine}: train both nets"
        )
