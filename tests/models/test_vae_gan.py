"""VAE-GAN: its parts by hand, and who has which gradient."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import VAEGAN
from pyro_mvae.inference.objective import importance_traces
from tests.models.small import SHAPE, SMALL, terms, x_for


class AlwaysDraws(torch.distributions.Normal):
    """N(loc, 1) whose draws are known beforehand."""

    def __init__(self, loc, value):
        super().__init__(loc, torch.ones_like(loc))
        self.value = value

    def sample(self, sample_shape=()):
        return self.value


def test_the_players_of_a_vae_gan_have_gradients_from_their_own_parts_only():
    torch.manual_seed(1)
    vae, x = VAEGAN(SHAPE, 4, **SMALL), x_for()
    model, _ = importance_traces(vae.model, vae.guide, x)
    touched = {}
    for factor in ("similarity", "adversary", "discriminator"):
        names, parameters = zip(*vae.named_parameters(), strict=True)
        gradients = torch.autograd.grad(model.nodes[factor]["log_prob_sum"], parameters, retain_graph=True, allow_unused=True)
        found = zip(names, gradients, strict=True)
        touched[factor] = {name.split(".")[0] for name, g in found if g is not None and bool((g != 0).any())}
    assert touched == {"similarity": {"encoder", "decoder"}, "adversary": {"decoder"}, "discriminator": {"discriminator"}}


def test_the_parts_of_a_vae_gan_by_hand():
    """Each factor from the pictures themselves, in float64's logarithms: a wrong sign or weight is seen."""
    torch.manual_seed(1)
    vae, x = VAEGAN(SHAPE, 4, similarity=0.3, adversary=0.7, pixels=0.0, **SMALL).eval(), x_for()
    prior, drawn = vae.prior(len(x)).sample(), {}
    vae.prior = lambda n: torch.distributions.Independent(AlwaysDraws(torch.zeros_like(prior), prior), 1)
    model, _ = importance_traces(vae.model, vae.guide, x)
    with torch.no_grad():
        decoded, fake = vae.decode(model.nodes["z"]["value"]), vae.decode(prior)
        (features, real), (near, of_decoded), (_, of_fake) = (vae.discriminator(each) for each in (x, decoded, fake))
        drawn["similarity"] = -0.5 * 0.3 * (features - near).square().sum()
        drawn["adversary"] = 0.7 * of_fake.sigmoid().log().sum()
        drawn["discriminator"] = (
            real.sigmoid().log().sum() + 0.5 * (1 - of_decoded.sigmoid()).log().sum() + 0.5 * (1 - of_fake.sigmoid()).log().sum()
        )
    for name, expected in drawn.items():
        torch.testing.assert_close(model.nodes[name]["log_prob_sum"].detach(), expected, rtol=1e-4, atol=1e-4)
    found = terms(vae, x)
    assert found["likelihood"] > 0
    assert found["loss"] == pytest.approx(sum(found[name] for name in ("kl", *drawn)), rel=1e-5)
