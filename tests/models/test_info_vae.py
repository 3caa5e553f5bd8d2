"""InfoVAE's discrepancy, by hand and without bias."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_mvae import InfoVAE
from pyro_mvae.inference.objective import importance_traces
from pyro_mvae.models.info_vae import KERNELS, mmd
from tests.catalog import unchecked
from tests.models.small import SHAPE, SMALL, terms, x_for


def test_info_vae_is_the_vae_for_alpha_0_and_lambda_1_and_has_no_kl_for_alpha_1():
    torch.manual_seed(1)
    vae = InfoVAE(SHAPE, 4, alpha=0.0, weight=1.0, **SMALL)
    found = terms(vae, x_for())
    assert found["mmd"] == 0
    assert found["loss"] == pytest.approx(found["likelihood"] + found["kl"], rel=1e-6)
    torch.manual_seed(1)
    free = InfoVAE(SHAPE, 4, alpha=1.0, weight=5.0, **SMALL)
    found = terms(free, x_for())
    assert found["loss"] == pytest.approx(found["likelihood"] + found["mmd"], rel=1e-6)
    assert found["kl"] > 0


def test_info_vae_adds_its_weighted_discrepancy_to_the_loss():
    """(α + λ − 1) MMD of the same codes and the same draws from the prior: a wrong sign or weight is seen."""
    torch.manual_seed(1)
    vae, x = InfoVAE(SHAPE, 4, alpha=0.25, weight=8.0, **SMALL), x_for()
    drawn, prior = {}, vae.prior

    def remembered(n):
        found = prior(n)
        sample = found.sample
        found.sample = lambda *shape: drawn.setdefault("prior", sample(*shape))
        return found

    vae.prior = remembered
    model, _ = importance_traces(vae.model, vae.guide, x)
    discrepancy = float(mmd(model.nodes["z"]["value"], drawn["prior"], kernel="imq").detach())
    assert abs(discrepancy) > 1e-3
    assert float(model.nodes["mmd"]["log_prob_sum"].detach()) == pytest.approx(-7.25 * len(x) * discrepancy, rel=1e-4)
    assert vae.kl_weight == 0.75


def test_one_point_has_no_discrepancy():
    assert mmd(torch.zeros(1, 2), torch.ones(1, 2), kernel="imq") == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd_of_a_small_case_by_hand(kernel):
    a, b = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [2.0], [2.0]])
    k = {"rbf": lambda s: math.exp(-s / 2), "imq": lambda s: 2 / (2 + s)}[kernel]
    within = sum(k(float(p - q) ** 2) for v in (a, b) for i, p in enumerate(v) for j, q in enumerate(v) if i != j) / 6
    across = sum(k(float(p - q) ** 2) for p in a for q in b) / 9
    assert float(mmd(a, b, kernel=kernel)) == pytest.approx(within - 2 * across, rel=1e-5)
    two = float(mmd(a, b, kernel=kernel, bandwidths=(1.0, 1.0)))
    assert two == pytest.approx(2 * (within - 2 * across), rel=1e-5)


def test_mmd_has_no_bias():
    """Its mean over many pairs of samples of one distribution is 0: 5 standard errors; that of the V-statistic is not."""
    dim, bandwidths, generator = 3, (0.5, 2.0), torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 5, dim, generator=generator) for _ in range(600)]
    values = torch.stack([mmd(a, b, kernel="imq", bandwidths=bandwidths) for a, b in pairs])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 5 * error

    def kernels(a, b):
        squares = torch.cdist(a, b) ** 2
        return sum((2 * dim * width / (2 * dim * width + squares)).mean() for width in bandwidths)

    biased = torch.stack([kernels(a, a) + kernels(b, b) - 2 * kernels(a, b) for a, b in pairs])
    assert float(biased.mean()) > 20 * error


def test_one_bandwidth_is_written_as_several_are():
    with pytest.raises(ValueError, match=r"bandwidths are 1.0, expected one or more numbers above 0, such as \(1.0,\)"):
        unchecked(InfoVAE.__init__)(InfoVAE.__new__(InfoVAE), SHAPE, bandwidths=1.0)
