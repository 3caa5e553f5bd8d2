"""VQ-VAE: a codebook made by hand, its steps, its bound and its prior."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import VQVAE
from pyro_mvae.evaluate.likelihood import log_evidence
from pyro_mvae.inference.objective import importance_traces
from pyro_mvae.models.vq_vae import Codebook
from pyro_mvae.nets.causal import Causal
from tests.models.small import SHAPE, SMALL, terms, x_for


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
        book.follow(vectors.view(100, 4, 2).transpose(1, 2).flatten(1))
    torch.testing.assert_close(torch.cdist(book.vectors, centres).amin(0), torch.zeros(4), atol=0.05, rtol=0)
    assert book.perplexity() == pytest.approx(4, rel=0.05)
    book.vectors[0], book.sums[0], book.counts[0] = 99.0, 0.0, 0.0
    book.follow(vectors[:8].view(2, 4, 2).transpose(1, 2).flatten(1))
    assert book.vectors.abs().max() < 7


def test_a_step_of_the_codebook_by_hand():
    """0.9 of what was and 0.1 of what came: a moving average the other way round is seen."""
    book = Codebook(2, 1, decay=0.9)
    book.vectors.copy_(torch.tensor([[0.0], [10.0]]))
    book.sums.copy_(torch.tensor([[0.0], [40.0]]))
    book.counts.copy_(torch.tensor([4.0, 4.0]))
    book.follow(torch.tensor([[1.0], [2.0], [9.0]]))
    torch.testing.assert_close(book.counts, torch.tensor([0.9 * 4 + 0.2, 0.9 * 4 + 0.1]))
    torch.testing.assert_close(book.vectors[:, 0], torch.tensor([0.3 / 3.8, (36 + 0.9) / 3.7]))


def test_perplexity_counts_what_is_used_and_not_what_is_restarted():
    torch.manual_seed(0)
    book = Codebook(16, 2, decay=0.9)
    for _ in range(100):
        book.follow(torch.ones(8, 4))
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


def test_the_commitment_of_a_vq_vae_by_hand():
    torch.manual_seed(1)
    vae, x = VQVAE(SHAPE, 3, num_codes=4, net="mlp", places=2, commitment=0.4, **SMALL).eval(), x_for()
    _, guide = importance_traces(vae.model, vae.guide, x)
    distance = (vae.encoder(x) - vae.encode(x)).square().sum()
    torch.testing.assert_close(guide.nodes["commitment"]["log_prob_sum"], 0.4 * distance)
    found, mean = terms(vae, x), float(distance.detach()) / len(x)
    assert found["loss"] == pytest.approx(found["likelihood"] + found["kl"] + 0.4 * mean, rel=1e-5)


def test_only_the_guide_moves_the_codebook(images):
    vae = VQVAE((1, 16, 16), 4, num_codes=6, widths=(8, 12), hidden=16).train()
    x, before = images[:8].float() / 255, vae.codebook.vectors.clone()
    codes = vae.encode(x)
    vae.predictive(x, num_samples=2)
    vae.propose(x, 2)
    assert torch.equal(vae.encode(x), codes)
    assert torch.equal(vae.codebook.vectors, before)
    vae.guide(x)
    assert not torch.equal(vae.codebook.vectors, before)
