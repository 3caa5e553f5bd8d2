"""Bounds of all models, and what no model can be made with."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_mvae import GMVAE, MVAE, SVAE, VAE, VAEGAN, VQVAE, BetaVAE, InfoVAE, Objective, VaDE
from pyro_mvae.evaluate.likelihood import log_evidence
from pyro_mvae.inference.asvi import negative_bound
from tests.catalog import MODELS
from tests.models.small import SHAPE, SMALL, x_for


def test_the_bound_on_test_images_is_the_models_without_its_weights_and_factors(images):
    for vae in (BetaVAE((1, 16, 16), 4, beta=9.0, **SMALL), VAEGAN((1, 16, 16), 4, **SMALL)):
        vae.eval()
        torch.manual_seed(0)
        found = Objective(vae)(images.float() / 255)
        expected = float((found["likelihood"] + found["kl"]).detach())
        assert negative_bound(vae, images) == pytest.approx(expected, rel=1e-5)
        assert float(found["loss"].detach()) > expected + 1


@pytest.mark.parametrize("name", [name for name in MODELS if name != "VQVAE"])
def test_the_bound_is_below_the_likelihood(name):
    """By importance sampling with many samples, which is below log p(x) on average itself. A point mass has only its bound."""
    torch.manual_seed(3)
    vae, x = MODELS[name](SHAPE).eval(), x_for()
    with torch.no_grad():
        repeats = [terms_of(vae, x, seed) for seed in range(20)]
        evidence = float(log_evidence(vae, x, 2000).mean())
    assert sum(repeats) / len(repeats) < evidence


def terms_of(vae, x, seed):
    torch.manual_seed(seed)
    found = Objective(vae)(x)
    return -float(found["likelihood"] + found["kl"])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (BetaVAE, {"beta": -1.0}, "beta is -1"),
        (BetaVAE, {"beta": math.inf}, "beta is inf"),
        (InfoVAE, {"weight": math.inf}, "weight inf"),
        (InfoVAE, {"bandwidths": (1.0, math.nan)}, "one or more numbers above 0"),
        (GMVAE, {"style_hidden": 0}, "style_hidden is 0"),
        (InfoVAE, {"alpha": 2.0}, "alpha is 2"),
        (InfoVAE, {"alpha": 0.0, "weight": 0.5}, "1 or more together"),
        (InfoVAE, {"kernel": "linear"}, "expected one of: rbf, imq"),
        (InfoVAE, {"bandwidths": ()}, "one or more numbers above 0"),
        (VaDE, {"num_clusters": 0}, "num_clusters is 0"),
        (MVAE, {"num_clusters": 0}, "num_clusters is 0"),
        (GMVAE, {"style_dim": 0}, "style_dim is 0"),
        (SVAE, {"latent_dim": 1}, "latent_dim is 1"),
        (SVAE, {"family": "normal"}, "expected one of: von_mises_fisher"),
        (VQVAE, {"num_codes": 0}, "num_codes is 0"),
        (VQVAE, {"decay": 1.0}, "decay is 1"),
        (VQVAE, {"commitment": -1.0}, "commitment is -1"),
        (VAEGAN, {"similarity": -1.0}, "similarity is -1"),
        (VAE, {"net": "dense"}, "net is 'dense'"),
    ],
)
def test_mistakes_are_explained(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(SHAPE, **arguments)
