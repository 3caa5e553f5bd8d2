"""Codes on the sphere."""

from __future__ import annotations

import pytest
import torch
from pyro import poutine

from pyro_mvae import SVAE
from tests.models.small import SHAPE, SMALL, x_for


@pytest.mark.parametrize("family", ["von_mises_fisher", "power_spherical"])
def test_codes_of_an_s_vae_are_on_the_sphere_with_one_concentration_in_training_and_evaluation(family):
    vae, x = SVAE(SHAPE, 5, family=family, net="mlp", **SMALL), x_for()
    for mode in (True, False):
        vae.train(mode)
        z = poutine.trace(vae.guide).get_trace(x).nodes["z"]
        torch.testing.assert_close(z["value"].norm(dim=-1), torch.ones(6))
        torch.testing.assert_close(z["fn"].concentration, vae.encoder(x)[1][:, 0] ** -2)
    torch.testing.assert_close(vae.prior(100).sample().norm(dim=-1), torch.ones(100))
