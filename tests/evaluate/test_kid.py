"""The kernel distance against sums written out, and what it says of pictures that are and are not alike."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from pyro_mvae import VAE, load_data
from pyro_mvae.evaluate import kid
from pyro_mvae.evaluate.kid import discrepancy, efficientnet_features


def test_it_is_the_sum_over_pairs():
    a, b = torch.randn(4, 3), torch.randn(5, 3)

    def k(p, q):
        return (float(p @ q) / 3 + 1) ** 3

    expected = statistics.fmean(k(p, q) for p, q in itertools.permutations(a, 2))
    expected += statistics.fmean(k(p, q) for p, q in itertools.permutations(b, 2))
    expected -= 2 * statistics.fmean(k(p, q) for p in a for q in b)
    assert float(discrepancy(a, b)) == pytest.approx(expected, rel=1e-5)


def test_it_has_no_bias():
    """2,000 pairs of samples of one distribution; 6 standard errors: fails once in 10⁸ runs, always with the diagonal."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 8, 2, generator=generator) for _ in range(2000)]
    values = torch.stack([discrepancy(a, b) for a, b in draws])
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean())) < 6 * error
    diagonal = torch.stack([((a * a).sum(1) / 2 + 1).pow(3).mean() for a, _ in draws]).mean() / 8
    assert float(values.mean() + diagonal) > 6 * error


@pytest.fixture(scope="module")
def features():
    return efficientnet_features()


def test_emoji_are_nearer_to_emoji_than_to_digits_and_noise(features):
    emoji, digits = load_data("emoji").train.images[::25].float() / 255, load_data("digits").train.images[:30].float() / 255
    with torch.no_grad():
        real, other, shapes = features(emoji[:60:2]), features(emoji[1:60:2]), features(digits)
        noise = features(torch.rand(30, 3, 32, 32))
    assert real.shape == (30, 1280)
    alike = float(discrepancy(real, other))
    assert float(discrepancy(real, shapes)) > 5 * abs(alike)
    assert float(discrepancy(real, noise)) > 5 * abs(alike)


def test_it_is_the_same_for_a_seed_and_leaves_the_random_state():
    images, vae = torch.randint(0, 256, (6, 3, 8, 8)).byte(), VAE((3, 8, 8), 4, likelihood="logistic")
    how = {"num_images": 5, "repeats": 2, "features": lambda x: x.flatten(1)}
    before = torch.get_rng_state()
    first, second = kid(vae, images, **how), kid(vae, images, **how)
    assert first == second
    assert first.sd > 0
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_images_and_a_missing_net(monkeypatch):
    vae = VAE((3, 8, 8), 4, likelihood="logistic")
    with pytest.raises(ValueError, match="expected 2 or more"):
        kid(vae, torch.zeros(1, 3, 8, 8).byte())
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"pip install 'pyro-mvae\[kid\]'"):
        efficientnet_features()
