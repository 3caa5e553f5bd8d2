"""Measures against brute force, closed forms and scikit-learn's own examples of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mvae import VAE, VQVAE, VaDE, evaluate, fit
from pyro_mvae.compress import SparseCode
from pyro_mvae.data import Split
from pyro_mvae.evaluate import judge, latents, psnr, ssim
from pyro_mvae.evaluate.cost import num_params
from pyro_mvae.evaluate.likelihood import log_evidence, negative_log_likelihood
from pyro_mvae.models.vae import codes
from tests.catalog import MODELS, unchecked
from tests.linear_gaussian import LinearGaussian, data


def stripes(n, *, seed=0):
    """Images of four kinds that anybody tells apart: a bright stripe in one of four places."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    images = torch.randint(0, 40, (n, 1, 16, 16), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * label : 4 * label + 4] += 200
    return Split(images.byte(), labels=labels)


@pytest.fixture(scope="module")
def sets():
    return stripes(400), stripes(200, seed=1)


@pytest.fixture(scope="module")
def fitted(sets):
    torch.manual_seed(0)
    vae = VAE((1, 16, 16), 4, net="mlp", hidden=32)
    fit(vae, sets[0].images, epochs=30, batch_size=40)
    return vae


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_best_map_is_that_of_brute_force(pairs):
    clusters, labels = (np.array(column) for column in zip(*pairs, strict=True))
    best = max(np.mean([to[c] == label for c, label in pairs]) for to in itertools.permutations(range(4)))
    assert latents.agreement(clusters, labels) == pytest.approx(best)


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


class Broken(VAE):
    """One that fails in the middle of being measured."""

    def encode(self, x):
        raise RuntimeError("broken")

    clusters = posterior = generate = encode


def test_a_measure_that_fails_leaves_a_model_in_training_as_it_was(sets):
    model, (train, test) = Broken((1, 16, 16), 4).train(), sets
    for measure in (
        lambda: evaluate.active_units(model, test.images),
        lambda: evaluate.rate_distortion(model, test.images),
        lambda: evaluate.reconstruction(model, test.images),
        lambda: evaluate.kid(model, test.images, features=lambda x: x.flatten(1)),
        lambda: judge.generated(model, train),
    ):
        with pytest.raises(RuntimeError, match="broken"):
            measure()
        assert model.training


def test_images_that_cannot_be_measured_are_named(sets):
    model, (train, test) = VAE((1, 16, 16), 4).train(), sets
    measures = {
        "active units": evaluate.active_units,
        "rate": evaluate.rate_distortion,
        "reconstruction": evaluate.reconstruction,
        "NLL": evaluate.negative_log_likelihood,
        "KID": lambda model, images: evaluate.kid(model, images, features=lambda x: x.flatten(1)),
    }
    wrong = {
        r"got \(1|got \(n|got \(4|expected 1 or 3": test.images[:4, :, :8],
        "torch.uint8|0, 1": test.images.float(),
        "there are": test.images[:0],
    }
    for measure in measures.values():
        for message, images in wrong.items():
            with pytest.raises(ValueError, match=message):
                measure(model, images)
    for unhinted in (codes, evaluate.reconstruction, evaluate.active_units):
        with pytest.raises(ValueError, match="expected images as a tensor, got a ndarray"):
            unchecked(unhinted)(model, test.images.numpy())
    for measure in (evaluate.rate_distortion, evaluate.reconstruction, evaluate.negative_log_likelihood):
        with pytest.raises(ValueError, match="chunk is 0"):
            measure(model, test.images, chunk=0)
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            evaluate.train_classifier(train.images, train.labels, steps=steps)
    nothing = Split(test.images[:0], labels=test.labels[:0])
    for train_on, test_on in ((train, nothing), (nothing, test)):
        with pytest.raises(ValueError, match="there are no images"):
            evaluate.knn_accuracy(model, train_on, test_on)
    assert evaluate.active_units(model, train.images, split="train").split == "train"


def test_more_clusters_than_labels_leave_some_without():
    clusters, labels = np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1])
    assert latents.agreement(clusters, labels) == 0.75


def test_structural_similarity_of_constant_pictures_by_hand():
    """Without variance only the luminance is left: (2ab + c) / (a² + b² + c)."""
    a, b = torch.full((2, 1, 12, 12), 0.3), torch.full((2, 1, 12, 12), 0.6)
    expected = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)
    torch.testing.assert_close(ssim(a, b), torch.full((2,), expected), rtol=1e-4, atol=0)
    torch.testing.assert_close(psnr(a, b), torch.full((2,), -20 * math.log10(0.3)))
    with pytest.raises(ValueError, match="sides of 11 or more"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_structural_similarity_of_one_window_by_hand():
    """A picture as large as the window: its weighted moments, by numpy in float64."""
    a, b = np.random.default_rng(0).random((2, 11, 11))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(line, line) / line.sum() ** 2
    mean_a, mean_b = (w * a).sum(), (w * b).sum()
    var_a, var_b = (w * a * a).sum() - mean_a**2, (w * b * b).sum() - mean_b**2
    cov = (w * a * b).sum() - mean_a * mean_b
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    found = ssim(*(torch.as_tensor(x, dtype=torch.float32)[None, None] for x in (a, b)))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_structural_similarity_is_symmetric_and_falls_with_noise():
    x, noise = torch.rand(4, 3, 20, 24), torch.randn(4, 3, 20, 24)
    values = [ssim(x, (x + sd * noise).clamp(0, 1)) for sd in (0.0, 0.05, 0.2)]
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()
    torch.testing.assert_close(ssim(x, noise), ssim(noise, x))


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


def test_a_sparse_code_has_few_numbers_and_few_bits(sets, fitted):
    train, test = sets
    sparse = SparseCode(threshold=1.0)(fitted).eval()
    (dense_numbers, dense_bits), (numbers, bits) = (evaluate.code_sparsity(model, train, test) for model in (fitted, sparse))
    assert dense_numbers.value == 4
    assert numbers.value < 4
    assert bits.value < dense_bits.value


def test_the_bits_of_a_code_by_hand(sets):
    """Two values a dimension, 3 to 1: counts of 4 and 2 with one added; -log2 of 2/3 and 1/3."""

    class Read(VAE):
        def encode(self, x):
            return x[:, 0, 0, :1] * 255

    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    images[3, 0, 0, 0] = 1
    split = Split(images)
    numbers, bits = evaluate.code_sparsity(Read((1, 8, 8), 1), split, split, step=1.0)
    assert numbers.value == 0.25
    assert bits.value == pytest.approx(-(3 * math.log2(4 / 6) + math.log2(2 / 6)) / 4)
    with pytest.raises(ValueError, match="step is 0"):
        evaluate.code_sparsity(Read((1, 8, 8), 1), split, split, step=0.0)


def test_units_that_do_not_move_are_not_active(sets, fitted):
    before = evaluate.active_units(fitted, sets[1].images).value
    still = VAE((1, 16, 16), 4, net="mlp", hidden=32)
    still.load_state_dict(fitted.state_dict())
    still.encoder.heads.loc.weight.data[:2] = 0
    assert before == 4
    assert evaluate.active_units(still, sets[1].images).value == 2


def test_codes_of_what_is_easily_told_apart_are_read_right(sets, fitted):
    train, test = sets
    found = [
        evaluate.knn_accuracy(fitted, train, test, num_labels=40, repeats=3),
        evaluate.probe_accuracy(fitted, train, test),
        evaluate.clustering_accuracy(fitted, train, test),
    ]
    assert [measure.value > 90 for measure in found] == [True] * 3, [str(measure) for measure in found]
    shuffled = Split(train.images, labels=train.labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))])
    assert evaluate.knn_accuracy(fitted, shuffled, test, num_labels=40, repeats=3).value < 60
    assert all(measure.num_images == 200 and measure.protocol for measure in found)


def test_a_models_own_clusters_are_used_where_it_has_some(sets):
    train, test = sets
    torch.manual_seed(0)
    vae = VaDE((1, 16, 16), 4, num_clusters=4, net="mlp", hidden=32)
    vae.initialize(train.images, fit=fit, epochs=20, batch_size=40)
    found = evaluate.clustering_accuracy(vae, train, test)
    assert found.value > 90
    assert "own clusters" in found.protocol
    read, cas, _ = evaluate.generation_accuracy(vae, train, test, judge_of(train), num_images=200)
    assert "own cluster" in read.protocol
    assert min(read.value, cas.value) > 80


def test_too_few_clusters_for_the_labels_are_explained(sets):
    vae = VaDE((1, 16, 16), 4, num_clusters=2, net="mlp", hidden=8)
    with pytest.raises(ValueError, match="of 4 labels: give it a larger num_clusters"):
        judge.generated(vae, sets[0], num_images=8)


def judge_of(train):
    return evaluate.train_classifier(train.images, train.labels, steps=150, batch_size=40)


def test_what_is_generated_is_read_by_the_judge(sets, fitted):
    train, test = sets
    classifier = judge_of(train)
    assert judge.accuracy(classifier, test.images, test.labels) > 97
    read, cas, _ = evaluate.generation_accuracy(fitted, train, test, classifier, num_images=200)
    assert min(read.value, cas.value) > 80
    assert "the judge reads" in read.protocol
    assert (read.num_images, cas.num_images) == (200, 200)


def test_generation_of_one_picture_for_all_labels_is_noticed(sets, fitted):
    """A model that makes the same picture for every label is at the level of chance."""
    train, test = sets

    class Collapsed(VAE):
        def draw_like(self, z, n):
            return torch.zeros(n, 4)

    vae = Collapsed((1, 16, 16), 4, net="mlp", hidden=32).eval()
    vae.load_state_dict(fitted.state_dict())
    read, cas, _ = evaluate.generation_accuracy(vae, train, test, judge_of(train), num_images=200)
    assert read.value == 25
    assert cas.value < 60


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_measured_by_every_measure(name):
    train, test = stripes(80), stripes(40, seed=1)
    vae = MODELS[name]((1, 16, 16)).eval()
    draws = {"steps": 2} if isinstance(vae, VQVAE) else {}
    z = vae.draw_like(vae.encode(train.images[:20].float() / 255).detach(), 3, **draws)
    assert vae.decode(z).shape == (3, 1, 16, 16)
    measures = [
        evaluate.active_units(vae, test.images),
        *evaluate.rate_distortion(vae, test.images),
        evaluate.knn_accuracy(vae, train, test, num_labels=8, repeats=2),
        *evaluate.reconstruction(vae, test.images),
    ]
    assert all(math.isfinite(measure.value) for measure in measures)
    assert math.isfinite(negative_log_likelihood(vae, test.images, num_samples=3).nats)
    if hasattr(vae, "clusters"):
        probabilities = vae.clusters(test.images.float() / 255)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(40))
        assert vae.generate(2, cluster=1).shape == (2, 1, 16, 16)


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


def test_labels_need_not_be_the_first_numbers(sets, fitted):
    train, test = (replace(split, labels=7 * split.labels + 5) for split in sets)
    vae = VaDE((1, 16, 16), 4, num_clusters=4, net="mlp", hidden=8)
    assert judge.generated(vae, train, num_images=8)[1].unique().tolist() == [5, 12, 19, 26]
    assert evaluate.clustering_accuracy(fitted, train, test) == evaluate.clustering_accuracy(fitted, *sets)


def test_data_without_labels_are_refused(sets, fitted):
    with pytest.raises(ValueError, match="have no labels"):
        evaluate.probe_accuracy(fitted, Split(sets[0].images), sets[1])
    with pytest.raises(ValueError, match="num_labels is 1000, expected"):
        evaluate.knn_accuracy(fitted, *sets, num_labels=1000)
    with pytest.raises(ValueError, match="num_labels is 3, expected 4 or more"):
        evaluate.knn_accuracy(fitted, *sets, num_labels=3)
    with pytest.raises(ValueError, match="expected 400 labels, from 0 on, one for each image, got NoneType"):
        unchecked(evaluate.train_classifier)(sets[0].images, None)


def test_neighbours_are_told_as_they_were_asked(sets, fitted):
    found = evaluate.knn_accuracy(fitted, *sets, num_labels=11, repeats=2, seed=4)
    assert "2 nearest of labelled training codes, 2 of each class, drawn 2 times" in found.protocol
    assert found.seeds == (4,)


def test_pictures_too_small_for_a_window_have_no_similarity():
    found = evaluate.reconstruction(VAE((1, 8, 8), 4), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert [measure.name for measure in found] == ["PSNR"]


def test_measuring_leaves_a_model_in_its_mode(sets):
    vae = VAE((1, 16, 16), 4, net="mlp", hidden=8).train()
    evaluate.rate_distortion(vae, sets[1].images)
    evaluate.reconstruction(vae, sets[1].images)
    judge.generated(vae, sets[0], num_images=8)
    assert vae.training


def test_a_codebook_is_among_what_was_learned():
    vae = VQVAE((1, 16, 16), 4, num_codes=6, net="mlp", hidden=8)
    assert num_params(vae) == sum(parameter.numel() for parameter in vae.parameters()) + 6 * 4


def test_images_have_256_levels_for_every_measure(sets, fitted):
    floats = sets[1].images.float() / 255
    for measure in (evaluate.active_units, evaluate.reconstruction, latents.assigned):
        model = VaDE((1, 16, 16), 4, num_clusters=4, net="mlp", hidden=8) if measure is latents.assigned else fitted
        with pytest.raises(ValueError, match="uint8"):
            measure(model, floats)


def test_the_likelihood_of_one_point_needs_one_sample(sets):
    vae = VQVAE((1, 16, 16), 4, num_codes=6, net="mlp", hidden=8)
    found = negative_log_likelihood(vae, sets[1].images, num_samples=50)
    assert found.num_samples == 1
    assert vae.generate(0).shape == (0, 1, 16, 16)


@pytest.mark.parametrize("wrong", [{"num_samples": 2.5}, {"chunk": 0}, {"repeats": 0}])
def test_numbers_of_a_likelihood_are_whole(sets, fitted, wrong):
    with pytest.raises(ValueError, match="expected a whole number"):
        unchecked(negative_log_likelihood)(fitted, sets[1].images, **wrong)


def test_what_cannot_be_measured_says_so(sets, fitted):
    classifier = judge_of(sets[0])
    with pytest.raises(ValueError, match="no labels"):
        evaluate.generation_accuracy(fitted, sets[0], Split(sets[1].images), classifier)
    with pytest.raises(ValueError, match="num_images is 0"):
        evaluate.generation_accuracy(fitted, *sets, classifier, num_images=0)
    with pytest.raises(ValueError, match="no images"):
        evaluate.reconstruction(fitted, sets[1].images[:0])
    with pytest.raises(ValueError, match="0 times, expected 1 or more"):
        evaluate.knn_accuracy(fitted, *sets, num_labels=8, repeats=0)
    with pytest.raises(ValueError, match="two batches in"):
        psnr(torch.zeros(2, 1, 12, 12), torch.zeros(2, 3, 12, 12))
    with pytest.raises(ValueError, match="two batches in"):
        ssim(torch.zeros(2, 1, 12, 12).byte(), torch.zeros(2, 1, 12, 12).byte())
