"""Likelihoods against numerical integrals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence

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


@settings(max_examples=50, deadline=None)
@given(st.floats(-60.0, 60.0), st.floats(-100.0, 100.0))
def test_the_kl_of_continuous_bernoullis(one, other):
    """Against an integral; torch's own is negative where logits are above 16."""
    p, q = (ContinuousBernoulli(logits=torch.tensor(eta)) for eta in (one, other))
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = torch.exp(one * (x - float(one > 0)))
    density = density / density.mean()
    log_q = other * (x - float(other > 0)) - torch.exp(other * (x - float(other > 0))).mean().log()
    expected = (density * (density.clamp(min=1e-300).log() - log_q)).mean().item()
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-4, abs=2e-4)
    assert kl_divergence(p, p).item() == 0
    assert p.entropy().item() == pytest.approx(-(density * density.clamp(min=1e-300).log()).mean().item(), abs=1e-3)


def test_what_is_no_picture_is_refused_where_that_is_checked():
    with pytest.raises(ValueError, match="support"):
        ContinuousBernoulli(logits=torch.zeros(2), validate_args=True).log_prob(torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize("eta", [8.0, 20.0, 40.0])
def test_half_precision_is_enough_for_the_continuous_bernoulli(eta):
    x = torch.linspace(0, 1, 33)
    for logits in (torch.full_like(x, eta), torch.full_like(x, -eta)):
        half = ContinuousBernoulli(logits=logits.half(), validate_args=False).log_prob(x.half())
        torch.testing.assert_close(half.float(), ContinuousBernoulli(logits=logits).log_prob(x), atol=5e-3, rtol=2e-3)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_draws_images_and_gives_gradients(name):
    likelihood, eta = make_likelihood(name, 3), torch.randn(2, 3, 8, 8, requires_grad=True)
    law = likelihood(eta)
    assert law.sample().shape == (2, 3, 8, 8)
    law.log_prob(torch.rand(2, 3, 8, 8).round()).sum().backward()
    assert eta.grad.isfinite().all()
    assert law.mean.shape == law.variance.shape == (2, 3, 8, 8)
