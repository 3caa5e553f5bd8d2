"""Every model by every measure; what can't be measured, and what is left as it was."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch

from pyro_mvae import VAE, VQVAE, VaDE, evaluate
from pyro_mvae.data import Split
from pyro_mvae.evaluate import judge, latents, psnr, ssim
from pyro_mvae.evaluate.cost import num_params
from pyro_mvae.evaluate.likelihood import negative_log_likelihood
from pyro_mvae.models.vae import codes
from tests.catalog import MODELS, SIZES, unchecked
from tests.evaluate.stripes import stripes


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


def judge_of(train):
    return evaluate.train_classifier(train.images, train.labels, steps=150, batch_size=40)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_measured_by_every_measure(name, monkeypatch):
    monkeypatch.setattr(VQVAE, "draw_like", functools.partialmethod(VQVAE.draw_like, steps=2))
    train, test = (replace(split, labels=split.labels % 3) for split in (stripes(80), stripes(40, seed=1)))
    classifier = evaluate.train_classifier(train.images, train.labels, steps=2)
    vae = MODELS[name]((1, 16, 16)).eval()
    z = vae.draw_like(vae.encode(train.images[:20].float() / 255).detach(), 3)
    assert vae.decode(z).shape == (3, 1, 16, 16)
    measures = [
        evaluate.active_units(vae, test.images),
        *evaluate.rate_distortion(vae, test.images),
        evaluate.knn_accuracy(vae, train, test, num_labels=8, repeats=2),
        evaluate.probe_accuracy(vae, train, test),
        evaluate.clustering_accuracy(vae, train, test),
        evaluate.kid(vae, test.images, num_images=8, features=lambda x: x.flatten(1)[:, :8]),
        *evaluate.generation_accuracy(vae, train, test, classifier, num_images=8),
        evaluate.iwae_bound(vae, test.images, num_samples=2),
        *evaluate.reconstruction(vae, test.images),
    ]
    for measure in measures:
        assert math.isfinite(measure.value)
        assert measure.protocol
        assert measure.split in ("test", "generated")
        assert measure.num_images > 0
        assert measure.num_samples >= 1
    assert math.isfinite(negative_log_likelihood(vae, test.images, num_samples=3).nats)
    if hasattr(vae, "clusters"):
        probabilities = vae.clusters(test.images.float() / 255)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(40))
        assert vae.generate(2, cluster=1).shape == (2, 1, 16, 16)


def test_perplexity_is_the_number_of_codes_in_use():
    """Half of the images all of one code, half of another: 2; of one alone: 1."""
    vae = VQVAE((1, 16, 16), 4, num_codes=6, **SIZES).eval()
    chosen = torch.tensor([1, 1, 4, 4])[:, None].expand(4, 16)
    vae.encode_codes = lambda x: chosen[: len(x)]
    images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    assert evaluate.perplexity(vae, images).value == pytest.approx(2.0)
    found = evaluate.perplexity(vae, images[:2], split="train")
    assert (found.value, found.split, found.num_images) == (pytest.approx(1.0), "train", 2)
    with pytest.raises(ValueError, match="no images"):
        evaluate.perplexity(vae, images[:0])


def test_data_without_labels_are_refused(sets, fitted):
    with pytest.raises(ValueError, match="have no labels"):
        evaluate.probe_accuracy(fitted, Split(sets[0].images), sets[1])
    with pytest.raises(ValueError, match="num_labels is 1000, expected"):
        evaluate.knn_accuracy(fitted, *sets, num_labels=1000)
    with pytest.raises(ValueError, match="num_labels is 3, expected 4 or more"):
        evaluate.knn_accuracy(fitted, *sets, num_labels=3)
    with pytest.raises(ValueError, match="expected 400 labels, from 0 on, one for each image, got NoneType"):
        unchecked(evaluate.train_classifier)(sets[0].images, None)


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


def test_what_is_given_for_something_else_says_so(sets, fitted):
    train, test = sets
    for measure in (evaluate.clustering_accuracy, evaluate.knn_accuracy, evaluate.probe_accuracy, evaluate.code_sparsity):
        with pytest.raises(ValueError, match=r"expected a Split, such as .* got a Tensor"):
            unchecked(measure)(fitted, train.images, test.images)
    with pytest.raises(ValueError, match="seeds are 3, expected a list"):
        unchecked(evaluate.rate_distortion)(fitted, test.images, seeds=3)
    with pytest.raises(ValueError, match="a VAE has no codebook"):
        unchecked(evaluate.perplexity)(fitted, test.images)
    with pytest.raises(ValueError, match="step is inf"):
        evaluate.code_sparsity(fitted, train, test, step=float("inf"))
    with pytest.raises(ValueError, match=r"labels are torch.float32, expected whole numbers"):
        evaluate.train_classifier(train.images, train.labels.float())
    with pytest.raises(ValueError, match="all training images have the label 2"):
        evaluate.probe_accuracy(fitted, Split(train.images, torch.full((400,), 2)), test)


def test_one_image_of_a_label_is_too_few_to_draw_codes_like(sets, fitted):
    rare = Split(sets[0].images[:9], torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3]))
    with pytest.raises(ValueError, match="like those of 1 image, expected 2 or more of each kind"):
        evaluate.generation_accuracy(fitted, rare, sets[1], judge_of(sets[0]), num_images=8)
