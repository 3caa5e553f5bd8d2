"""What a Bayesian likelihood gains: the likelihood of test images, θ′ fixed or q(θ′|x), and how well it knows its error.

pytest benchmarks/ -k theta
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mvae import MVAE, VAE, fit, load_data, negative_log_likelihood
from pyro_mvae.train import initialized, suited, usual_epochs

SEEDS = (0, 1)
THETAS = (None, "gamma", "log_normal", "weights")


def coverage(vae: VAE, images: Tensor) -> float:
    """The share of pixels within two predictive standard deviations of their predictive mean; 0.954 for a normal."""
    inside = []
    for x in (images.float() / 255).split(100):
        mean, sd = vae.predictive(x, num_samples=8)
        inside.append(((x - mean).abs() <= 2 * sd).float().mean((1, 2, 3)))
    return float(torch.cat(inside).mean())


def spread_error(vae: VAE, images: Tensor) -> float:
    """By how much the logarithm of an image's predictive error differs from that of its true error: root of the mean square."""
    errors = []
    for x in (images.float() / 255).split(100):
        mean, sd = vae.predictive(x, num_samples=8)
        errors.append(((x - mean).square().mean((1, 2, 3)).sqrt() / sd.square().mean((1, 2, 3)).sqrt()).log())
    return float(torch.cat(errors).square().mean().sqrt())


@pytest.mark.parametrize(("name", "likelihood"), [("digits", "gaussian"), ("digits", "logistic"), ("emoji", "logistic")])
def test_theta(name, likelihood, measured, record):
    data = suited(load_data(name), likelihood)

    def measure(theta: str | None, seed: int) -> dict[str, Any]:
        vae = initialized(MVAE, data, seed=seed, likelihood=likelihood, theta=theta)
        fit(vae, data, epochs=usual_epochs(len(data.train)), lr=4e-3, seed=seed)
        nll = negative_log_likelihood(vae, data.test.images, num_samples=50, seed=seed)
        test = data.test.images[:500]
        row = {"nll": round(nll.nats, 2), "bits_per_dim": round(nll.bits_per_dim, 5)}
        return row | {"within_2_sd": round(coverage(vae, test), 4), "log_error": round(spread_error(vae, test), 4)}

    title = f"theta-{name}-{likelihood}"
    rows = measured(title, [{"theta": theta, "seed": seed} for theta in THETAS for seed in SEEDS], measure)
    record(title, {"model": "MVAE, 50 importance samples, all test images", "rows": rows})
