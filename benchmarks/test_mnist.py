"""The figures to reach on full MNIST, each on the protocol of the figure it is held against.

pytest benchmarks/ -k mnist --mnist DIR

DIR holds MNIST's four idx files. Runs of hours go on where they were cut off: models half trained wait in `benchmarks/runs/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.interleave import one_core
from benchmarks.test_train_step import MODELS as BY_HAND
from benchmarks.test_train_step import hand_step
from pyro_mvae import GMVAE, MVAE, SVAE, VAE, VaDE, fit, load_data, miniaturize, negative_log_likelihood
from pyro_mvae.data import Data, Split, binarize
from pyro_mvae.evaluate import clustering_accuracy
from pyro_mvae.inference.stage import fit_stage

RUNS = Path(__file__).parent / "runs"
HELD_OUT = 10_000
SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def mnist(request: pytest.FixtureRequest) -> Data:
    folder = request.config.getoption("--mnist")
    if not folder:
        pytest.skip("give the folder of MNIST's idx files: --mnist DIR")
    RUNS.mkdir(exist_ok=True)
    return load_data(f"mnist:{folder}")


def fixed(data: Data) -> Data:
    """Each picture binarised once and for all, by seed 0."""

    def drawn(split: Split) -> Split:
        return replace(split, images=(255 * binarize(split.images, seed=0)).byte())

    return replace(data, train=drawn(data.train), test=drawn(data.test), binarization="none")


def held_out(data: Data) -> tuple[Data, Tensor]:
    """Training images without the last 10,000, and those, to choose by."""
    labels = data.train.labels
    assert labels is not None
    kept = Split(data.train.images[:-HELD_OUT], labels[:-HELD_OUT])
    return replace(data, train=kept), data.train.images[-HELD_OUT:]


def made(kind: type[VAE], seed: int, latent_dim: int, **more: Any) -> VAE:
    torch.manual_seed(seed)
    return kind(SHAPE, latent_dim, **more)
