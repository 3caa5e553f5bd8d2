"""Models with clusters: mixtures, VaDE, GMVAE and mVAE, against sums over all clusters."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pyro.infer import TraceEnum_ELBO

from pyro_mvae import GMVAE, MVAE, VAE, Objective, VaDE, fit
from pyro_mvae.inference.objective import importance_traces
from pyro_mvae.models.mixture import Mixture, likeliest, of_clusters
from pyro_mvae.models.vae import codes
from tests.models.small import SHAPE, SMALL, terms, x_for


def test_a_mixture_is_the_sum_of_its_components():
    mixture = Mixture(3, 2)
    mixture.logits.data, mixture.log_scale.data = torch.tensor([0.0, 1.0, -1.0]), torch.randn(3, 2) / 3
    z = torch.randn(7, 2)
    weights = mixture.logits.softmax(-1)
    parts = torch.stack(
        [
            weights[y] * torch.distributions.Normal(mixture.loc[y], mixture.log_scale[y].exp()).log_prob(z).sum(-1).exp()
            for y in range(3)
        ],
        -1,
    )
    torch.testing.assert_close(mixture(7).log_prob(z), parts.sum(-1).log())
    torch.testing.assert_close(mixture.log_joint(z), parts.log())
    torch.testing.assert_close(mixture.responsibilities(z), parts / parts.sum(-1, keepdim=True))


def test_a_mixture_finds_the_clusters_it_is_started_on():
    torch.manual_seed(0)
    y = torch.arange(3).repeat(200)
    z = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 9.0]])[y] + 0.5 * torch.randn(600, 2)
    mixture = Mixture(3, 2)
    mixture.start(likeliest(z, 3, restarts=3))
    found = mixture.responsibilities(z).argmax(-1)
    assert len({(int(a), int(b)) for a, b in zip(y, found, strict=True)}) == 3
    torch.testing.assert_close(mixture.log_scale.exp(), torch.full((3, 2), 0.5), atol=0.1, rtol=0)


def test_vades_bound_is_that_of_the_model_with_its_clusters():
    """E_q(z|x)[log p(x|z) + Σ_y p(y|z) (log p(z, y) − log p(y|z)) − log q(z|x)], y spelt out."""
    torch.manual_seed(1)
    vae, x = VaDE(SHAPE, 4, num_clusters=3, **SMALL).eval(), x_for()
    found = terms(vae, x)
    torch.manual_seed(0)
    q = vae.posterior(x)
    z = q.rsample()
    joint, p_y = vae.mixture.log_joint(z), vae.mixture.responsibilities(z)
    bound = vae.conditional(z).log_prob(x) + (p_y * (joint - p_y.log())).sum(-1) - q.log_prob(z)
    assert found["loss"] == pytest.approx(-float(bound.detach().mean()), rel=1e-5)


def test_an_mvae_has_clusters_and_a_bayesian_likelihood_where_it_is_told_to(images):
    plain, x = MVAE((1, 16, 16), 4, **SMALL), images[:6].float() / 255
    assert plain.num_clusters is None
    assert torch.equal(
        plain.prior(3).log_prob(torch.ones(3, 4)), VAE((1, 16, 16), 4, **SMALL).prior(3).log_prob(torch.ones(3, 4))
    )
    for use in (plain.clusters, partial(plain.initialize, fit=fit), lambda x: plain.generate(1, cluster=0)):
        with pytest.raises(ValueError, match="this MVAE has no clusters"):
            use(x)
    whole = MVAE((1, 16, 16), 4, num_clusters=3, theta="weights", **SMALL)
    whole.initialize(images, start="autoencoder", epochs=2)
    found = terms(whole.eval(), x)
    torch.manual_seed(0)
    q, theta_q = whole.posterior(x), whole.theta_posterior(x)
    z, theta = q.rsample(), theta_q.rsample()
    bound = whole.conditional(z, theta).log_prob(x) + torch.logsumexp(whole.mixture.log_joint(z), -1) - q.log_prob(z)
    bound = bound - torch.distributions.kl_divergence(theta_q, whole.theta.prior(6))
    assert found["loss"] == pytest.approx(-float(bound.detach().mean()), rel=1e-5)
    assert whole.clusters(x).shape == (6, 3)
    assert len(fit(whole, images, epochs=1)) == 1


def test_gmvaes_bound_is_the_sum_over_clusters_by_brute_force():
    torch.manual_seed(1)
    vae, x = GMVAE(SHAPE, 4, num_clusters=3, style_dim=2, **SMALL).eval(), x_for()
    with torch.no_grad():
        found = terms(vae, x)
        torch.manual_seed(0)
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x) / len(x)
        torch.manual_seed(0)
        _, guide = importance_traces(vae.model, vae.guide, x)
        w, z = (guide.nodes[name]["value"] for name in ("w", "z"))
        joint = vae.components.log_prob(w, z)
        p_y = joint.softmax(-1)
        bound = vae.conditional(z).log_prob(x) - vae.posterior(x).log_prob(z) - vae.style_posterior(x).log_prob(w)
        bound += vae.style_prior(len(x)).log_prob(w)
        for y in range(3):
            bound += p_y[:, y] * (joint[:, y] - p_y[:, y].log())
    assert found["loss"] == pytest.approx(-float(bound.mean()), rel=1e-5)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["loss"] == pytest.approx(found["likelihood"] + found["kl"], rel=1e-5)
    weighed = terms(vae, x, kl_weight=0.5)
    assert weighed["loss"] == pytest.approx(found["likelihood"] + 0.5 * found["kl"], rel=1e-5)


def test_a_weighed_gmvae_scales_every_latent_site_but_not_the_expectation():
    torch.manual_seed(1)
    vae, x = GMVAE(SHAPE, 4, num_clusters=3, style_dim=2, **SMALL).eval(), x_for()
    plain = terms(vae, x)
    vae.kl_weight = 0.0
    found = terms(vae, x)
    assert found["loss"] == pytest.approx(found["likelihood"], rel=1e-6)
    assert (found["kl"], found["likelihood"]) == pytest.approx((plain["kl"], plain["likelihood"]))


def test_vade_starts_from_an_autoencoder_and_its_codes(images):
    vae = VaDE((1, 16, 16), 4, num_clusters=3, net="mlp", widths=(), hidden=16)
    before = Objective(vae)(images.float() / 255)["likelihood"]
    assert 0 < vae.initialize(images, epochs=20) < 600  # seconds
    assert Objective(vae)(images.float() / 255)["likelihood"] < 0.8 * before
    found = vae.mixture(len(images)).log_prob(codes(vae, images)).mean()
    assert found > Mixture(3, 4)(len(images)).log_prob(codes(vae, images)).mean()
    assert len(fit(vae, images, epochs=1)) == 1


def test_components_of_known_clusters_are_their_means_and_deviations():
    z, y = torch.tensor([[0.0], [2.0], [5.0], [9.0], [1.0]]), torch.tensor([0, 0, 1, 1, 2])
    found = of_clusters(z, y, 3)
    torch.testing.assert_close(found.loc[:2, 0], torch.tensor([1.0, 7.0]))
    torch.testing.assert_close(found.scale[:2, 0], torch.tensor([2.0, 8.0]).sqrt())
    torch.testing.assert_close(found.loc[2], z.mean(0))  # one code has no deviation: it has those of all
    torch.testing.assert_close(found.weights, torch.tensor([0.4, 0.4, 0.2]))
