"""What is particular to each model, where it has a closed form or can be summed by brute force."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

from pyro_mvae import GMVAE, MVAE, SVAE, VAE, VAEGAN, VQVAE, BetaVAE, InfoVAE, Objective, VaDE, fit
from pyro_mvae.evaluate.likelihood import log_evidence
from pyro_mvae.inference.asvi import negative_bound
from pyro_mvae.inference.objective import importance_traces
from pyro_mvae.models.info_vae import KERNELS, mmd
from pyro_mvae.models.mixture import Mixture, likeliest, of_clusters
from pyro_mvae.models.vae import codes
from pyro_mvae.models.vq_vae import Codebook
from pyro_mvae.nets.causal import Causal
from tests.catalog import MODELS, unchecked

SHAPE = (1, 8, 8)
SMALL = {"widths": (4,), "hidden": 8}


def x_for(n=6):
    return torch.randint(0, 2, (n, *SHAPE), generator=torch.Generator().manual_seed(2)).float()


def terms(vae, x, **weights):
    torch.manual_seed(0)
    return {name: float(term.detach()) for name, term in Objective(vae, **weights)(x).items()}


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_a_beta_vae_weighs_its_kl_and_reports_it_unweighed(beta):
    vae = BetaVAE(SHAPE, 4, beta=beta, **SMALL)
    found = terms(vae, x_for())
    assert found["loss"] == pytest.approx(found["likelihood"] + beta * found["kl"], rel=1e-6)
    vae.kl_weight = 1.0
    plain = terms(vae, x_for())
    assert (plain["kl"], plain["likelihood"]) == (found["kl"], found["likelihood"])


def test_the_bound_on_test_images_is_the_models_without_its_weights_and_factors(images):
    for vae in (BetaVAE((1, 16, 16), 4, beta=9.0, **SMALL), VAEGAN((1, 16, 16), 4, **SMALL)):
        vae.eval()
        torch.manual_seed(0)
        found = Objective(vae)(images.float() / 255)
        expected = float((found["likelihood"] + found["kl"]).detach())
        assert negative_bound(vae, images) == pytest.approx(expected, rel=1e-5)
        assert float(found["loss"].detach()) > expected + 1


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
    """Its mean over many pairs of samples of one distribution is 0: 5 standard errors; with the diagonals left in it is not."""
    generator = torch.Generator().manual_seed(0)
    values = torch.stack(
        [mmd(*torch.randn(2, 5, 3, generator=generator), kernel="imq", bandwidths=(0.5, 2.0)) for _ in range(2000)]
    )
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 5 * error
    with_diagonals = values * (4 / 5) + 2 * 2 / 5
    assert float(with_diagonals.mean()) > 50 * error


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
    whole.initialize(images, fit=fit, start="autoencoder", epochs=2)
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


@pytest.mark.parametrize("family", ["von_mises_fisher", "power_spherical"])
def test_codes_of_an_s_vae_are_on_the_sphere_with_one_concentration_in_training_and_evaluation(family):
    vae, x = SVAE(SHAPE, 5, family=family, net="mlp", **SMALL), x_for()
    for mode in (True, False):
        vae.train(mode)
        z = poutine.trace(vae.guide).get_trace(x).nodes["z"]
        torch.testing.assert_close(z["value"].norm(dim=-1), torch.ones(6))
        torch.testing.assert_close(z["fn"].concentration, vae.encoder(x)[1][:, 0] ** -2)
    torch.testing.assert_close(vae.prior(100).sample().norm(dim=-1), torch.ones(100))


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


def test_vade_starts_from_an_autoencoder_and_its_codes(images):
    vae = VaDE((1, 16, 16), 4, num_clusters=3, net="mlp", widths=(), hidden=16)
    before = Objective(vae)(images.float() / 255)["likelihood"]
    vae.initialize(images, fit=fit, epochs=20)
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


def test_vectors_are_rounded_to_a_codebook_made_by_hand_and_the_gradient_passes_straight_through():
    book = Codebook(3, 2).eval()
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0]]))
    flat = book.joined(torch.tensor([[[0.2, 0.1], [-0.9, 1.5]], [[0.9, 1.2], [0.4, 0.4]]])).requires_grad_()
    assert book.indices(book.split(flat)).tolist() == [[0, 2], [1, 0]]
    rounded, distance = book(flat)
    torch.testing.assert_close(book.split(rounded), torch.tensor([[[0.0, 0.0], [-1.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]]]))
    torch.testing.assert_close(distance, torch.tensor([0.05 + 0.26, 0.05 + 0.32]))
    weights = torch.arange(8.0).view(2, 4)
    assert torch.equal(torch.autograd.grad((rounded * weights).sum(), flat, retain_graph=True)[0], weights)
    torch.testing.assert_close(torch.autograd.grad(distance.sum(), flat)[0], 2 * (flat - rounded).detach())


def test_the_codebook_follows_its_vectors_and_dead_codes_start_again():
    torch.manual_seed(0)
    book = Codebook(4, 2, decay=0.5)
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
    vectors = centres[torch.arange(400) % 4] + 0.1 * torch.randn(400, 2)
    for _ in range(40):
        book(vectors.view(100, 4, 2).transpose(1, 2).flatten(1))
    torch.testing.assert_close(torch.cdist(book.vectors, centres).amin(0), torch.zeros(4), atol=0.05, rtol=0)
    assert book.perplexity() == pytest.approx(4, rel=0.05)
    book.vectors[0], book.sums[0], book.counts[0] = 99.0, 0.0, 0.0
    book(vectors[:8].view(2, 4, 2).transpose(1, 2).flatten(1))
    assert book.vectors.abs().max() < 7


def test_a_step_of_the_codebook_by_hand():
    """0.9 of what was and 0.1 of what came: a moving average the other way round is seen."""
    book = Codebook(2, 1, decay=0.9)
    book.vectors.copy_(torch.tensor([[0.0], [10.0]]))
    book.sums.copy_(torch.tensor([[0.0], [40.0]]))
    book.counts.copy_(torch.tensor([4.0, 4.0]))
    book(torch.tensor([[1.0], [2.0], [9.0]]))
    torch.testing.assert_close(book.counts, torch.tensor([0.9 * 4 + 0.2, 0.9 * 4 + 0.1]))
    torch.testing.assert_close(book.vectors[:, 0], torch.tensor([0.3 / 3.8, (36 + 0.9) / 3.7]))


def test_perplexity_counts_what_is_used_and_not_what_is_restarted():
    torch.manual_seed(0)
    book = Codebook(16, 2, decay=0.9)
    for _ in range(100):
        book(torch.ones(8, 4))
    assert book.perplexity() < 4.5  # all vectors are one point: at most a few codes share it


def test_the_bound_of_a_vq_vae_is_the_likelihood_of_its_codes_and_counts_to_one():
    """Σ_c p(c) = 1 over all codes of two places, and the bound is log p(x|z) + log p(c)."""
    torch.manual_seed(1)
    vae, x = VQVAE(SHAPE, 3, num_codes=4, net="mlp", places=2, **SMALL).eval(), x_for()
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    with torch.no_grad():
        assert float(vae.prior(16).log_prob(vae.codebook.lookup(every)).exp().sum()) == pytest.approx(1, rel=1e-5)
        codes_of = vae.encode_codes(x)
        log_p = vae.code_prior(codes_of).log_softmax(-1).gather(-1, codes_of[..., None]).sum((1, 2))
        bound = vae.conditional(vae.encode(x)).log_prob(x) + log_p
        found = terms(vae, x)
        torch.testing.assert_close(log_evidence(vae, x, 3), bound)
    assert -found["likelihood"] - found["kl"] == pytest.approx(float(bound.mean()), rel=1e-5)


def test_codes_are_drawn_as_their_net_says():
    """χ² over the 16 pairs; the seed is fixed, another would fail once in 10,000; draws from another net fail."""
    from scipy import stats

    torch.manual_seed(0)
    nets = [Causal(4, 2, width=16) for _ in range(2)]
    for net in nets:
        net.head.weight.data *= 4
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    with torch.no_grad():
        log_p = nets[0](every).log_softmax(-1).gather(-1, every[..., None]).sum((1, 2))

    def p_value(net):
        counts = torch.bincount(net.sample(5000) @ torch.tensor([4, 1]), minlength=16)
        return stats.chisquare(counts.numpy(), 5000 * log_p.double().softmax(-1).numpy()).pvalue

    assert p_value(nets[0]) > 1e-4
    assert p_value(nets[1]) < 1e-4


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


class AlwaysDraws(torch.distributions.Normal):
    """N(loc, 1) whose draws are known beforehand."""

    def __init__(self, loc, value):
        super().__init__(loc, torch.ones_like(loc))
        self.value = value

    def sample(self, sample_shape=()):
        return self.value


def test_the_commitment_of_a_vq_vae_by_hand():
    torch.manual_seed(1)
    vae, x = VQVAE(SHAPE, 3, num_codes=4, net="mlp", places=2, commitment=0.4, **SMALL).eval(), x_for()
    _, guide = importance_traces(vae.model, vae.guide, x)
    distance = (vae.encoder(x) - vae.encode(x)).square().sum()
    torch.testing.assert_close(guide.nodes["commitment"]["log_prob_sum"], 0.4 * distance)
    found, mean = terms(vae, x), float(distance.detach()) / len(x)
    assert found["loss"] == pytest.approx(found["likelihood"] + found["kl"] + 0.4 * mean, rel=1e-5)


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


def test_one_bandwidth_is_written_as_several_are():
    with pytest.raises(ValueError, match=r"bandwidths are 1.0, expected one or more numbers above 0, such as \(1.0,\)"):
        unchecked(InfoVAE.__init__)(InfoVAE.__new__(InfoVAE), SHAPE, bandwidths=1.0)
