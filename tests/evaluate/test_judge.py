"""A judge reads what was generated."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import VAE, VaDE, evaluate
from pyro_mvae.evaluate import judge


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
