"""Likelihoods against numerical integrals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mvae.likelihoods import LIKELIHOODS, ContinuousBernoulli, Logistic, make_likelihood


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.01, 0.5))
def test_moments_of_the_discretised_logistic(loc, scale):
    law, x = Logistic(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)), torch.arange(256) / 255
    p = law.log_prob(x.double()).exp()
    mean = (p * x).sum()
    torch.testing.assert_close(law.mean, mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(law.variance, (p * x**2).sum() - mean**2, atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(-30.0, 30.0))
def test_moments_of_the_continuous_bernoulli(eta):
    law = ContinuousBernoulli(logits=torch.tensor(eta))
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = torch.exp(eta * (x - float(eta > 0)))
    density = density / density.sum()
    mean = (density * x).sum()
    assert float(law.mean) == pytest.approx(float(mean), abs=1e-4)
    assert float(law.variance) == pytest.approx(float((density * (x - mean) ** 2).sum()), abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.floats(-60.0, 60.0), st.floats(0.0, 1.0))
def test_the_density_of_the_continuous_bernoulli(eta, x):
    normaliser = math.log(math.expm1(eta) / eta) if abs(eta) > 1e-3 else eta / 2 + eta**2 / 24
    logits = torch.tensor(eta, requires_grad=True)
    law = ContinuousBernoulli(logits=logits)
    log_prob = law.log_prob(torch.tensor(x))
    assert log_prob.item() == pytest.approx(eta * x - normaliser, abs=2e-5)
    (slope,) = torch.autograd.grad(log_prob, logits)
    assert slope.item() == pytest.approx(x - law.mean.item(), abs=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_draws_images_and_gives_gradients(name):
    likelihood, eta = make_likelihood(name, 3), torch.randn(2, 3, 8, 8, requires_grad=True)
    law = likelihood(eta)
    assert law.sample().shape == (2, 3, 8, 8)
    law.log_prob(torch.rand(2, 3, 8, 8).round()).sum().backward()
    assert eta.grad.isfinite().all()
    assert law.mean.shape == law.variance.shape == (2, 3, 8, 8)
