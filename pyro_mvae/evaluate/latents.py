"""What the codes of a model hold: how many of them, and how far one can read labels off them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mvae.data import Split, shown
from pyro_mvae.data.batches import scaled
from pyro_mvae.evaluate.measurement import Measurement, over_repeats
from pyro_mvae.inference.objective import Objective
from pyro_mvae.models import VAE, VQVAE
from pyro_mvae.models.vae import ACTIVE, codes
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import above, count

NEIGHBOURS = 5
CODES = "codes are those of images as they are, not binarised"


def labels_of(split: Any) -> np.ndarray:
    """The labels of a split; ValueError when it has none."""
    check_splits(split)
    if split.labels is None:
        raise ValueError("the data have no labels: accuracy can be measured on digits and mnist:DIR")
    if not len(split.labels):
        raise ValueError("there are no images, expected 1 or more with their labels")
    return split.labels.numpy()


def check_splits(*splits: Any) -> None:
    """Raise a ValueError for what are no splits, images with their labels."""
    for split in splits:
        if not isinstance(split, Split):
            raise ValueError(f"expected a Split, such as data.test or Split(images, labels), got a {type(split).__name__}")


def active_units(model: VAE, images: Tensor, *, split: str = "test") -> Measurement:
    """The number of dimensions whose posterior mean varies between images by more than 0.01.

    Args:
        images: uint8, (n, C, H, W).
        split: which they are, for the record.

    Raises:
        ValueError: for fewer than two images, some of another shape or not uint8.

    Source: Burda, Grosse and Salakhutdinov, 2016.
    """
    model.check_bytes(images)
    if len(images) < 2:
        raise ValueError(f"there are {len(images)} images, expected 2 or more: what is measured is how codes vary between them")
    found = int((codes(model, images).var(0) > ACTIVE).sum())
    protocol = f"variance of the posterior mean above {ACTIVE}, of {model.latent_dim} dimensions; {CODES}"
    return Measurement("active units", float(found), "dimensions", protocol, len(images), split=split)


def perplexity(model: VQVAE, images: Tensor, *, split: str = "test") -> Measurement:
    """About how many codes of a VQ-VAE are in use: exp(−Σ_k p_k log p_k), p_k the share of places that code k stands at.

    Raises:
        ValueError: for another model, no images, some of another shape or not uint8.

    Source: van den Oord, Vinyals and Kavukcuoglu, 2017.
    """
    if not isinstance(model, VQVAE):
        raise ValueError(f"a {type(model).__name__} has no codebook: perplexity is measured of a VQVAE")
    model.check_bytes(images)
    shares = model.latent_activity(images) / model.config["num_codes"]
    found = float(torch.special.entr(shares.double()).sum().exp())
    return Measurement("perplexity", found, "codes", f"of {len(shares)} codes; {CODES}", len(images), split=split)


def code_sparsity(model: VAE, train: Split, test: Split, *, step: float = 0.25) -> tuple[Measurement, Measurement]:
    """How many numbers of a code are not 0, and its bits, rounded to multiples of `step` and entropy-coded; per test image.

    The bits are what an arithmetic coder needs, to a hundredth of a bit a number, that knows how often each dimension has each
    value: Σ_d −log₂ p_d(round(z_d / step)), p_d the frequencies among codes of training images, one added to each count.

    Raises:
        ValueError: for a step that is not above 0, or no images.

    Source: (21) of the paper, for the sparse code.
    """
    above(step, "step")
    check_splits(train, test)
    if not len(train) or not len(test):
        raise ValueError("there are no images: frequencies are those of training images, codes those of test images")
    known, asked = (codes(model, split.images).cpu() for split in (train, test))
    levels, coded = (torch.round(z / step).long() for z in (known, asked))
    lowest = torch.minimum(levels.amin(), coded.amin())
    num_levels = int(torch.maximum(levels.amax(), coded.amax()) - lowest) + 1
    bits = torch.zeros(len(coded), dtype=torch.float64)
    for dim in range(levels.shape[1]):
        counts = torch.bincount(levels[:, dim] - lowest, minlength=num_levels).double() + 1
        bits -= (counts / counts.sum()).log2()[coded[:, dim] - lowest]
    nonzero = float(asked.count_nonzero(1).double().mean())
    protocol = f"of {asked.shape[1]} numbers; {CODES}"
    how = f"steps of {step:g}, static frequencies of each dimension from {len(known)} training images; {CODES}"
    return (
        Measurement("non-zeros", nonzero, "numbers", protocol, len(asked)),
        Measurement("code", float(bits.mean()), "bits", how, len(asked)),
    )


@torch.no_grad()
def rate_distortion(
    model: VAE, images: Tensor, *, binarization: str = "none", seeds: Sequence[int] = (0,), split: str = "test", chunk: int = 500
) -> tuple[Measurement, Measurement]:
    """The rate, KL(q(z|x) ‖ p(z)) and that of θ′, and the distortion, −E_q[log p(x|z)], in nats per image; their sum is −ELBO.

    Args:
        images: uint8, (n, C, H, W), or floating point in [0, 1], which is not binarised.
        seeds: of the repeats, each with a binarisation and noise of its own.

    Raises:
        ValueError: for no images or seeds, images of another shape, or an unknown binarization.
    """
    if not isinstance(seeds, Sequence):
        raise ValueError(f"seeds are {seeds!r}, expected a list of whole numbers, such as (0, 1, 2)")
    count(chunk, "chunk")
    objective, rates, distortions = Objective(model), [], []
    device = next(model.parameters()).device
    for seed in seeds:
        xs = shown(images, binarization=binarization, seed=seed)
        rate = distortion = 0.0
        with torch.random.fork_rng(devices=[]), evaluating(model):
            torch.manual_seed(seed)
            for x in xs.split(chunk):
                terms = objective(x.to(device))
                rate += float(terms["kl"] + terms.get("theta_kl", 0.0)) * len(x)
                distortion += float(terms["likelihood"]) * len(x)
        rates.append(rate / len(images))
        distortions.append(distortion / len(images))
    about = {"unit": "nats", "protocol": f"binarisation {binarization}", "num_images": len(images), "seeds": tuple(seeds)}
    about |= {"split": split}
    return over_repeats(rates, name="rate", **about), over_repeats(distortions, name="distortion", **about)


def matched(clusters: np.ndarray, labels: np.ndarray, *, num_clusters: int = 0) -> dict[int, int]:
    """The one-to-one map from clusters to labels that gets most images right, by the Hungarian algorithm.

    Clusters beyond the number of labels have none. Of `num_clusters`, also those without images are given a label that is left.
    Labels are whatever numbers they are.

    Example:
        >>> matched(np.array([2, 2, 0, 0, 1]), np.array([0, 0, 1, 1, 2]))
        {0: 1, 1: 2, 2: 0}
        >>> matched(np.array([0, 0, 0]), np.array([7, 7, 5]), num_clusters=2)
        {0: 7, 1: 5}
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    classes, places = np.unique(labels, return_inverse=True)
    counts = np.zeros((max(int(clusters.max()) + 1, num_clusters), len(classes)), dtype=np.int64)
    np.add.at(counts, (clusters, places), 1)
    rows, columns = linear_sum_assignment(-counts)
    return {int(row): int(classes[column]) for row, column in zip(rows, columns, strict=True)}


def agreement(clusters: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose cluster is their label's, under the best one-to-one map."""
    best = matched(clusters, labels)
    return float(np.mean([best.get(int(cluster), -1) == label for cluster, label in zip(clusters, labels, strict=True)]))


def clustering_accuracy(model: VAE, train: Split, test: Split, *, seed: int = 0, split: str = "test") -> Measurement:
    """Unsupervised clustering accuracy on test images, in %: best one-to-one map of clusters to classes.

    A model without clusters of its own is given a Gaussian mixture on the codes of the training images, of as many components
    as there are classes; labels serve for the map alone. `split` says which images `test` are, for the record.
    """
    labels = labels_of(test)
    num_classes = len(np.unique(labels_of(train)))
    if model.num_clusters is not None:
        found, protocol = assigned(model, test.images), "the model's own clusters"
    else:
        from sklearn.mixture import GaussianMixture  # slow to import

        mixture = GaussianMixture(num_classes, covariance_type="full", reg_covar=1e-4, n_init=3, random_state=seed)
        mixture.fit(codes(model, train.images).double().cpu().numpy())
        found = mixture.predict(codes(model, test.images).double().cpu().numpy())
        protocol = f"Gaussian mixture of {num_classes} components, full covariances, on the posterior means of training images"
    protocol += f"; Hungarian map on the test images; {CODES}"
    return Measurement(
        "clustering accuracy", 100 * agreement(found, labels), "%", protocol, len(labels), seeds=(seed,), split=split
    )


@torch.no_grad()
def assigned(model: VAE, images: Tensor, *, chunk: int = 1000) -> np.ndarray:
    """The likeliest cluster of each image, of a model that has clusters."""
    model.check_bytes(images)
    device = next(model.parameters()).device
    with evaluating(model):
        parts = [model.clusters(scaled(x.to(device))).argmax(-1) for x in images.split(chunk)]  # pyright: ignore[reportCallIssue]
    return torch.cat(parts).cpu().numpy()


def most_labels(split: Split) -> int:
    """How many images can be drawn that are as many of each class."""
    _, counts = np.unique(labels_of(split), return_counts=True)
    return int(counts.min()) * len(counts)


def knn_accuracy(
    model: VAE, train: Split, test: Split, *, num_labels: int = 100, repeats: int = 10, seed: int = 0, split: str = "test"
) -> Measurement:
    """Accuracy on test images of 5 nearest neighbours among so many labelled training codes, drawn again and again, in %.

    Each draw has the same number of every class, or one more of some, which are drawn too, where the classes do not divide it;
    where that is fewer than 5, as many neighbours are asked.

    Raises:
        ValueError: when a class has fewer training images than that, or there are fewer labels than classes.
    """
    labels, wanted = labels_of(train), labels_of(test)
    classes = np.unique(labels)
    count(num_labels, "num_labels")
    each, rest = divmod(num_labels, len(classes))
    if each < 1:
        raise ValueError(f"num_labels is {num_labels}, expected {len(classes)} or more: one for each class")
    if num_labels > most_labels(train):
        raise ValueError(
            f"num_labels is {num_labels}, expected {most_labels(train)} at most: as many of the rarest class are there"
        )
    from sklearn.neighbors import KNeighborsClassifier  # slow to import

    known, asked = (codes(model, split.images).cpu().numpy() for split in (train, test))
    values, neighbours = [], min(NEIGHBOURS, each)
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, repeat))
        more = generator.permutation(len(classes)) < rest if rest else np.zeros(len(classes), int)
        drawn = [
            generator.choice(np.flatnonzero(labels == label), each + one, replace=False)
            for label, one in zip(classes, more, strict=True)
        ]
        chosen = np.concatenate(drawn)
        nearest = KNeighborsClassifier(neighbours).fit(known[chosen], labels[chosen])
        values.append(100 * float(nearest.score(asked, wanted)))
    share = f"{each} or {each + 1}" if rest else f"{each}"
    protocol = f"{neighbours} nearest of labelled training codes, {share} of each class, drawn {repeats} times; {CODES}"
    about = {"unit": "%", "protocol": protocol, "num_images": len(wanted), "seeds": (seed,), "split": split}
    return over_repeats(values, name=f"k-NN accuracy, {num_labels} labels", **about)


def probe_accuracy(model: VAE, train: Split, test: Split, *, split: str = "test") -> Measurement:
    """Accuracy on test images of a linear classifier of the codes, fitted to all training images, in %.

    Raises:
        ValueError: without labels, or where all training images have the same.
    """
    labels, wanted = labels_of(train), labels_of(test)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all training images have the label {labels[0]}, expected 2 labels or more to tell apart")
    from sklearn.linear_model import LogisticRegression  # slow to import
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(codes(model, train.images).cpu().numpy())
    known, asked = (scaler.transform(codes(model, split.images).cpu().numpy()) for split in (train, test))
    classifier = LogisticRegression(max_iter=300).fit(known, labels)
    value = 100 * float(classifier.score(asked, wanted))
    protocol = f"logistic regression on the standardised posterior means of {len(known)} training images; {CODES}"
    return Measurement("linear probe accuracy", value, "%", protocol, len(asked), split=split)
