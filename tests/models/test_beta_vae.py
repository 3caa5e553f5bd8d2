"""The weighted KL of the β-VAE."""

from __future__ import annotations

import pytest

from pyro_mvae import BetaVAE
from tests.models.small import SHAPE, SMALL, terms, x_for


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_a_beta_vae_weighs_its_kl_and_reports_it_unweighed(beta):
    vae = BetaVAE(SHAPE, 4, beta=beta, **SMALL)
    found = terms(vae, x_for())
    assert found["loss"] == pytest.approx(found["likelihood"] + beta * found["kl"], rel=1e-6)
    vae.kl_weight = 1.0
    plain = terms(vae, x_for())
    assert (plain["kl"], plain["likelihood"]) == (found["kl"], found["likelihood"])
