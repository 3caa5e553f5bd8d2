"""The likelihood by importance sampling, and its bounds."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import VQVAE, evaluate
from pyro_mvae.evaluate.likelihood import log_evidence, negative_log_likelihood
from tests.catalog import MODELS, unchecked
from tests.linear_gaussian import LinearGaussian, data


def test_the_importance_weighted_bound_rises_from_the_elbo_to_the_evidence():
    """More samples never lower it on average; a linear-Gaussian model tells the truth. Of fixed seeds: no chance."""
    model, images = LinearGaussian(), data().sigmoid()
    few, more = (evaluate.iwae_bound(model, images, num_samples=k, repeats=5) for k in (1, 50))
    truth = float(model.log_evidence(images).mean().detach())
    assert few.value < more.value <= truth + 3 * more.sd
    assert (few.name, few.num_samples, few.split) == ("IWAE bound, K = 1", 1, "test")
    nll = negative_log_likelihood(model, images, num_samples=50, repeats=5, split="train")
    assert nll.nats == -more.value
    assert nll.measurement().as_dict() | {"protocol": None} == {
        **{"name": "NLL", "unit": "nats", "value": nll.nats, "sd": nll.sd, "num_images": len(images), "num_samples": 50},
        **{"seeds": [0, 1, 2, 3, 4], "split": "train", "protocol": None},
    }


def test_likelihood_does_not_depend_on_how_codes_are_cut_into_chunks():
    pair, x = LinearGaussian(), data()
    estimates = []
    for chunk in (3, 8, 1000):
        torch.manual_seed(0)
        estimates.append(log_evidence(pair, x, 20, chunk=chunk))
    torch.testing.assert_close(estimates[0], estimates[2])
    torch.testing.assert_close(estimates[1], estimates[2])


def test_likelihood_is_repeated_with_new_noise_and_says_how(sets, fitted):
    once = negative_log_likelihood(fitted, sets[1].images, num_samples=5, seed=3)
    thrice = negative_log_likelihood(fitted, sets[1].images, num_samples=5, seed=2, repeats=3, binarization="none")
    assert (once.sd, once.seeds) == (None, (3,))
    assert thrice.seeds == (2, 3, 4)
    assert 0 < thrice.sd < 1
    assert abs(thrice.nats - once.nats) < 5 * thrice.sd
    dynamic = {"num_samples": 5, "binarization": "dynamic"}
    each = [negative_log_likelihood(fitted, sets[1].images, seed=seed, **dynamic).nats for seed in (2, 3)]
    both = negative_log_likelihood(fitted, sets[1].images, seed=2, repeats=2, **dynamic)
    assert both.nats == pytest.approx(sum(each) / 2, rel=1e-6)
    tighter = negative_log_likelihood(fitted, sets[1].images, num_samples=100)
    assert tighter.nats < once.nats
    with pytest.raises(ValueError, match="num_samples is 0, expected a whole number, 1 or more"):
        negative_log_likelihood(fitted, sets[1].images, num_samples=0)


def test_rate_and_distortion_are_the_bounds_two_halves(sets, fitted):
    rate, distortion = evaluate.rate_distortion(fitted, sets[1].images, seeds=(0, 1, 2))
    bound = negative_log_likelihood(fitted, sets[1].images, num_samples=1, repeats=20)
    error = bound.sd * (1 / 3 + 1 / 20) ** 0.5
    assert rate.value + distortion.value == pytest.approx(bound.nats, abs=5 * error)
    assert error < 0.05 * rate.value  # so that a rate left out would be seen
    assert rate.value > 0
    assert rate.seeds == (0, 1, 2)
    assert rate.sd >= 0


@pytest.mark.parametrize("name", MODELS)
def test_a_likelihood_of_what_cannot_be_measured_is_explained(name):
    vae, images = MODELS[name]((1, 16, 16)), torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(n, 1, 16, 16\), got \(2, 1, 16, 8\)"):
        evaluate.negative_log_likelihood(vae, images[..., :8])
    for measure in (evaluate.negative_log_likelihood, evaluate.rate_distortion):
        with pytest.raises(ValueError, match="there are no images"):
            measure(vae, images[:0])
        with pytest.raises(ValueError, match="binarization is 'dyn'"):
            measure(vae, images, binarization="dyn")
    with pytest.raises(ValueError, match="1 images, expected 2 or more"):
        evaluate.active_units(vae, images[:1])


def test_the_likelihood_of_one_point_needs_one_sample(sets):
    vae = VQVAE((1, 16, 16), 4, num_codes=6, net="mlp", hidden=8)
    found = negative_log_likelihood(vae, sets[1].images, num_samples=50)
    assert found.num_samples == 1
    assert vae.generate(0).shape == (0, 1, 16, 16)


@pytest.mark.parametrize("wrong", [{"num_samples": 2.5}, {"chunk": 0}, {"repeats": 0}])
def test_numbers_of_a_likelihood_are_whole(sets, fitted, wrong):
    with pytest.raises(ValueError, match="expected a whole number"):
        unchecked(negative_log_likelihood)(fitted, sets[1].images, **wrong)
