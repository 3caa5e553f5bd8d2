"""Images of four kinds, and a model of them."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import VAE, fit
from tests.evaluate.stripes import stripes


@pytest.fixture(scope="module")
def sets():
    return stripes(400), stripes(200, seed=1)


@pytest.fixture(scope="module")
def fitted(sets):
    torch.manual_seed(0)
    vae = VAE((1, 16, 16), 4, net="mlp", hidden=32)
    fit(vae, sets[0].images, epochs=30, batch_size=40)
    return vae
