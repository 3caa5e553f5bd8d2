"""Codes: how they are read, grouped, and how many numbers and bits they are."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from pyro_mvae import VAE, VaDE, evaluate, fit
from pyro_mvae.compress import SparseCode
from pyro_mvae.data import Split
from pyro_mvae.evaluate import judge, latents
from tests.catalog import unchecked


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_best_map_is_that_of_brute_force(pairs):
    clusters, labels = (np.array(column) for column in zip(*pairs, strict=True))
    best = max(np.mean([to[c] == label for c, label in pairs]) for to in itertools.permutations(range(4)))
    assert latents.agreement(clusters, labels) == pytest.approx(best)


def test_more_clusters_than_labels_leave_some_without():
    clusters, labels = np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1])
    assert latents.agreement(clusters, labels) == 0.75


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


def judge_of(train):
    return evaluate.train_classifier(train.images, train.labels, steps=150, batch_size=40)


def test_labels_need_not_be_the_first_numbers(sets, fitted):
    train, test = (replace(split, labels=7 * split.labels + 5) for split in sets)
    vae = VaDE((1, 16, 16), 4, num_clusters=4, net="mlp", hidden=8)
    assert judge.generated(vae, train, num_images=8)[1].unique().tolist() == [5, 12, 19, 26]
    assert evaluate.clustering_accuracy(fitted, train, test) == evaluate.clustering_accuracy(fitted, *sets)


def test_neighbours_are_told_as_they_were_asked(sets, fitted):
    found = evaluate.knn_accuracy(fitted, *sets, num_labels=11, repeats=2, seed=4)
    assert found.name == "k-NN accuracy, 11 labels"
    assert "2 nearest of labelled training codes, 2 or 3 of each class, drawn 2 times" in found.protocol
    assert found.seeds == (4,)


def test_as_many_labels_are_drawn_as_were_asked_for(sets, fitted, monkeypatch):
    """Of four classes, in turn: 2, 3, 3 and 3 for 11; the class that goes without the third is drawn."""
    drawn, fit_neighbours = [], KNeighborsClassifier.fit

    def noted(self, x, y):
        drawn.append(np.bincount(y).tolist())
        return fit_neighbours(self, x, y)

    monkeypatch.setattr(KNeighborsClassifier, "fit", noted)
    evaluate.knn_accuracy(fitted, *sets, num_labels=11, repeats=20)
    assert {tuple(sorted(counts)) for counts in drawn} == {(2, 3, 3, 3)}
    assert len({counts.index(2) for counts in drawn}) == 4
    with pytest.raises(ValueError, match=r"num_labels is 11\.5, expected a whole number"):
        unchecked(evaluate.knn_accuracy)(fitted, *sets, num_labels=11.5)
