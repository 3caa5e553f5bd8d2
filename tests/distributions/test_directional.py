"""Distributions on the sphere against closed forms, quadrature and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch.distributions import kl_divergence

from pyro_mvae.distributions import PowerSpherical, SphereUniform, VonMisesFisher
from pyro_mvae.distributions.bessel import log_normalizer, mean_cosine
from pyro_mvae.distributions.sphere import log_area
from pyro_mvae.distributions.von_mises_fisher import cosine_slope

FAMILIES = {"VonMisesFisher": VonMisesFisher, "PowerSpherical": PowerSpherical}
DIMS = [2, 3, 4, 10, 11, 64, 256]
KAPPAS = torch.tensor([1e-3, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5], dtype=torch.float64)


def around_first_axis(family, dim, kappa):
    loc = torch.zeros(dim, dtype=torch.float64)
    loc[0] = 1
    return FAMILIES[family](loc, torch.as_tensor(kappa, dtype=torch.float64))


def log_density(family, dim, kappa, t):
    """log p(t) of the cosine, up to a constant, by numpy."""
    power = (dim - 3) / 2 * np.log1p(-(t**2))
    return power + (kappa * t if family == "VonMisesFisher" else kappa * np.log1p(t))


def integral(family, dim, kappa, function=lambda t: 1.0, *, upto=1.0):
    """∫ f(t) p(t) dt without the constant, in the angle, which takes away the singularity for d = 2."""
    peak = max(log_density(family, dim + 1, kappa, t) for t in np.cos(np.linspace(1e-3, math.pi - 1e-3, 2000)))

    def integrand(angle):
        t = math.cos(angle)
        return function(t) * math.exp(log_density(family, dim + 1, kappa, t) - peak) if 0 < angle < math.pi else 0.0

    start = math.acos(upto)
    points = sorted({start, *np.linspace(start, math.pi, 41)})
    return sum(integrate.quad(integrand, a, b)[0] for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("dim", DIMS)
def test_bessel_ratio_and_normaliser_are_those_of_scipy(dim):
    order, kappa = dim / 2 - 1, KAPPAS.numpy()
    with np.errstate(all="ignore"):
        bottom, top = special.ive(order, kappa), special.ive(order + 1, kappa)
        known = bottom > 1e-290  # scipy's underflow where the order is high and κ small
        ratio = top / bottom
        expected = order * np.log(kappa) - dim / 2 * math.log(2 * math.pi) - np.log(bottom) - kappa
    assert known.sum() >= 5
    np.testing.assert_allclose(mean_cosine(KAPPAS, dim).numpy()[known], ratio[known], rtol=2e-8)
    np.testing.assert_allclose(log_normalizer(KAPPAS, dim).numpy()[known], expected[known], rtol=1e-9, atol=1e-8)
    single = mean_cosine(KAPPAS.float(), dim).double().numpy()
    np.testing.assert_allclose(single[known], ratio[known], rtol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_gradients_of_the_bessel_functions_are_finite_differences(dim):
    kappa = torch.tensor([0.0, 0.3, 5.0, 80.0, 900.0], dtype=torch.float64, requires_grad=True)
    step = 1e-4 * (1 + kappa.detach())
    for function in (mean_cosine, log_normalizer):
        (gradient,) = torch.autograd.grad(function(kappa, dim).sum(), kappa)
        wide = (function(kappa.detach() + step, dim) - function((kappa.detach() - step).abs(), dim)) / (2 * step)
        inside = kappa.detach() > 0
        torch.testing.assert_close(gradient[inside], wide[inside], rtol=1e-3, atol=1e-9)
    (slope,) = torch.autograd.grad(mean_cosine(kappa, dim).sum(), kappa)
    assert float(slope[0]) == pytest.approx(1 / dim)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [2, 3, 5, 20])
@pytest.mark.parametrize("kappa", [0.1, 3.0, 50.0])
def test_density_mean_entropy_and_kl_by_quadrature(family, dim, kappa):
    p = around_first_axis(family, dim, kappa)
    total = integral(family, dim, kappa)
    mean = integral(family, dim, kappa, lambda t: t) / total
    torch.testing.assert_close(p.mean[0], torch.tensor(mean, dtype=torch.float64), rtol=1e-6, atol=1e-8)

    def log_prob(t):
        x = torch.zeros(dim, dtype=torch.float64)
        x[0], x[1] = t, math.sqrt(max(1 - t * t, 0.0))
        return float(p.log_prob(x))

    entropy = -integral(family, dim, kappa, log_prob) / total
    assert float(p.entropy()) == pytest.approx(entropy, rel=1e-5, abs=1e-6)
    uniform = SphereUniform(dim, like=torch.empty(0, dtype=torch.float64))
    assert float(kl_divergence(p, uniform)) == pytest.approx(log_area(dim) - entropy, rel=1e-5, abs=1e-5)
    peak = max(log_density(family, dim + 1, kappa, t) for t in np.cos(np.linspace(1e-3, math.pi - 1e-3, 2000)))
    constant = math.log(total) + peak + log_area(dim - 1) if dim > 2 else math.log(2 * total) + peak
    assert log_prob(0.3) - (log_density(family, 3, kappa, 0.3)) == pytest.approx(-constant, abs=1e-6)


def test_for_three_dimensions_the_kl_is_elementary():
    kappa = torch.tensor([0.5, 4.0, 30.0], dtype=torch.float64)
    p = VonMisesFisher(torch.eye(3, dtype=torch.float64), kappa)
    expected = kappa / torch.tanh(kappa) - 1 + torch.log(kappa / torch.sinh(kappa))
    torch.testing.assert_close(kl_divergence(p, SphereUniform(3, (3,))), expected)


def p_value(family, dim, kappa, *, drawn_with):
    """Of Kolmogorov and Smirnov's test that cosines drawn with one concentration have another."""
    torch.manual_seed(0)
    t = around_first_axis(family, dim, drawn_with).sample((4000,))[:, 0].numpy()
    grid = np.cos(np.linspace(math.pi - 1e-9, 1e-9, 20_001))
    inner = (grid[1:] + grid[:-1]) / 2
    log_p = log_density(family, dim + 1, kappa, inner)  # in the angle
    cdf = np.concatenate([[0.0], np.cumsum(np.exp(log_p - log_p.max()))])
    return stats.kstest(t, lambda value: np.interp(value, grid, cdf / cdf[-1])).pvalue


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dim", "kappa"), [(2, 0.5), (2, 40.0), (3, 5.0), (10, 0.1), (10, 200.0), (100, 30.0), (256, 80.0), (3, 1e4)]
)
def test_draws_by_goodness_of_fit(family, dim, kappa):
    """Kolmogorov–Smirnov, 4,000 draws; the seed is fixed, another would fail once in 10,000."""
    assert p_value(family, dim, kappa, drawn_with=kappa) > 1e-4


@pytest.mark.parametrize("family", [*FAMILIES, "SphereUniform"])
@pytest.mark.parametrize("dim", [3, 10, 256])
def test_draws_lie_evenly_around_their_direction(family, dim):
    """A coordinate of what is left, at right angles to loc, of length 1: its square is Beta(1/2, (d − 2)/2). 1 in 10,000.

    One of noise that was not made of length 1 would not be.
    """
    torch.manual_seed(1)
    loc = torch.nn.functional.normalize(torch.randn(dim, dtype=torch.float64), dim=0)
    like = torch.empty(0, dtype=torch.float64)
    p = SphereUniform(dim, like=like) if family == "SphereUniform" else FAMILIES[family](loc, torch.tensor(5.0).double())
    x = p.sample((4000,))
    rest = torch.nn.functional.normalize(x - (x @ loc)[:, None] * loc, dim=1)
    across = torch.randn(dim, dtype=torch.float64)
    across = torch.nn.functional.normalize(across - (across @ loc) * loc, dim=0)
    law = stats.beta(0.5, (dim - 2) / 2)
    assert stats.kstest(((rest @ across) ** 2).numpy(), law.cdf).pvalue > 1e-4
    assert stats.kstest(((1.2 * rest @ across) ** 2).numpy(), law.cdf).pvalue < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("away", [0.0, 1e-30, 1e-12, 1e-8, 6e-8, 1e-6])
@pytest.mark.parametrize("first", [1.0, -1.0])
def test_draws_are_on_the_sphere_and_near_a_direction_that_is_nearly_an_axis(family, away, first):
    """κ = 10⁶: locᵀx is 1 to a few parts in 10⁵, in float32, and a gradient is a number; κ = 1: what is far off is as long."""
    torch.manual_seed(0)
    loc = torch.tensor([first, away, -away, 0.0]).requires_grad_()
    wide, x = (FAMILIES[family](loc, torch.tensor(kappa), validate_args=False).rsample((200,)) for kappa in (1.0, 1e6))
    for some in (wide, x):
        torch.testing.assert_close(some.norm(dim=-1), torch.ones(200))
    assert (x @ loc > 1 - 1e-4).all()
    assert torch.autograd.grad(x.square().sum() + x[:, 1].sum(), loc)[0].isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_in_the_direction_is_that_of_the_mean(family):
    """d/dloc E[a·x] = A(κ) (a − (a·loc) loc) along the sphere: 5 standard errors, and 0 without the draws' gradient."""
    torch.manual_seed(2)
    dim, kappa = 4, torch.tensor(3.0, dtype=torch.float64)
    raw, a = torch.randn(2, dim, dtype=torch.float64)
    raws = raw.expand(50_000, dim).clone().requires_grad_()
    loc = torch.nn.functional.normalize(raws, dim=1)
    (gradients,) = torch.autograd.grad((FAMILIES[family](loc, kappa.expand(50_000)).rsample() @ a).sum(), raws)
    direction = raw / raw.norm()
    expected = FAMILIES[family](direction, kappa).mean.norm() * (a - (a @ direction) * direction) / raw.norm()
    errors = gradients.std(0) / math.sqrt(len(gradients))
    assert ((gradients.mean(0) - expected).abs() < 5 * errors + 1e-9).all()
    assert (expected.abs() > 10 * errors).any()


def test_small_concentrations_in_many_dimensions_are_those_of_the_series():
    """A(κ) = κ/d (1 − κ²/(d (d + 2)) + …), where scipy's functions underflow."""
    for dim in (64, 256):
        kappa = torch.tensor([1e-3, 0.01, 0.1], dtype=torch.float64)
        expected = kappa / dim * (1 - kappa**2 / (dim * (dim + 2)))
        torch.testing.assert_close(mean_cosine(kappa, dim), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_goodness_of_fit_notices_a_wrong_concentration(family):
    assert p_value(family, 10, 200.0, drawn_with=230.0) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_one_draw_and_no_number(family):
    """A concentration that is none must not be waited for: the KL is none, which `fit` takes back."""
    loc = torch.eye(3)[0]
    assert FAMILIES[family](loc, torch.tensor(3.0)).sample().shape == (3,)
    for kappa in (math.nan, math.inf):
        p = FAMILIES[family](loc, torch.tensor(kappa), validate_args=False)
        assert p.sample().shape == (3,)
        assert not torch.isfinite(kl_divergence(p, SphereUniform(3)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [3, 16, 64, 256])
def test_the_kl_keeps_its_precision_in_float32(family, dim):
    loc = torch.eye(dim)[0]
    for kappa in (1.0, 1e3, 1e5):
        found = kl_divergence(FAMILIES[family](loc, torch.tensor(kappa)), SphereUniform(dim))
        exact = kl_divergence(around_first_axis(family, dim, kappa), SphereUniform(dim, like=torch.empty(0, dtype=torch.float64)))
        assert float(found) == pytest.approx(float(exact), abs=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [2, 3, 17])
def test_draws_are_on_the_sphere_and_around_any_direction(family, dim):
    torch.manual_seed(0)
    loc = torch.nn.functional.normalize(torch.randn(3, dim), dim=-1)
    loc[0] = torch.eye(dim)[0]  # the axis that draws are made around first
    p = FAMILIES[family](loc, torch.tensor([2.0, 20.0, 200.0]))
    x = p.sample((20_000,))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(20_000, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.mean(0), p.mean, atol=0.025, rtol=0)
    assert p.expand((5, 3)).rsample().shape == (5, 3, dim)


@pytest.mark.parametrize(
    ("dim", "kappa"), [(2, 0.3), (2, 5.0), (3, 5.0), (10, 0.5), (10, 80.0), (64, 20.0), (256, 60.0), (3, 2000.0)]
)
def test_the_gradient_of_a_draw_is_that_of_its_quantile(dim, kappa):
    """Holding F(t; κ) while κ changes, by quadrature."""

    def cdf(t, kappa):
        return integral("VonMisesFisher", dim, kappa, upto=t) / integral("VonMisesFisher", dim, kappa)

    centre = float(mean_cosine(torch.tensor(kappa, dtype=torch.float64), dim))
    spread = math.sqrt((1 - centre**2) / dim)
    for t in np.clip([centre - 2 * spread, centre - spread / 2, centre + spread / 2], -0.999, 0.99999):
        step = 1e-4 * kappa
        by_kappa = (cdf(t, kappa + step) - cdf(t, kappa - step)) / (2 * step)
        width = 1e-3 * (1 - abs(t))
        density = (cdf(t + width, kappa) - cdf(t - width, kappa)) / (2 * width)
        got = cosine_slope(torch.tensor([t]), torch.tensor([kappa], dtype=torch.float64), dim)
        assert float(got) == pytest.approx(-by_kappa / density, rel=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_an_expectation_is_right(family):
    """d/dκ E[(x₁ − 0.3)³] by draws and by quadrature: 5 standard errors; without the draws' gradient it would be 0."""
    dim, kappa = 5, 4.0

    def exact(kappa):
        return integral(family, dim, kappa, lambda t: (t - 0.3) ** 3) / integral(family, dim, kappa)

    torch.manual_seed(0)
    concentration = torch.full((100_000,), kappa, dtype=torch.float64, requires_grad=True)
    loc = torch.zeros(dim, dtype=torch.float64)
    loc[0] = 1
    x = FAMILIES[family](loc, concentration).rsample()
    (gradients,) = torch.autograd.grad(((x[:, 0] - 0.3) ** 3).sum(), concentration)
    expected = (exact(kappa + 1e-3) - exact(kappa - 1e-3)) / 2e-3
    assert abs(float(gradients.mean()) - expected) < 5 * float(gradients.std()) / math.sqrt(len(gradients))


@given(st.integers(2, 40), st.lists(st.integers(1, 3), max_size=2), st.sampled_from(sorted(FAMILIES)))
@settings(max_examples=25, deadline=None)
def test_shapes(dim, batch, family):
    loc = torch.nn.functional.normalize(torch.ones(*batch, dim), dim=-1)
    p = FAMILIES[family](loc, torch.ones(batch))
    assert (p.batch_shape, p.event_shape) == (torch.Size(batch), (dim,))
    x = p.rsample((4,))
    assert x.shape == (4, *batch, dim)
    assert p.log_prob(x).shape == (4, *batch)
    uniform = SphereUniform(dim, batch)
    assert uniform.log_prob(uniform.sample((4,))).shape == (4, *batch)
    assert kl_divergence(p, uniform).shape == tuple(batch)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="expected 2 or more"):
        SphereUniform(1)
    with pytest.raises(ValueError, match="expected 2 or more"):
        VonMisesFisher(torch.ones(3, 1), torch.ones(3))


@pytest.mark.parametrize("family", [VonMisesFisher, PowerSpherical])
def test_a_whole_number_is_a_concentration_too(family):
    loc = torch.tensor([1.0, 0.0])
    whole, same = (family(loc, torch.tensor(kappa)) for kappa in (1, 1.0))
    assert torch.equal(whole.log_prob(loc), same.log_prob(loc))
    assert torch.equal(kl_divergence(whole, SphereUniform(2)), kl_divergence(same, SphereUniform(2)))
    assert whole.sample().dtype == loc.dtype
