"""Clusters of pictures that are joined through their nearest neighbours: a start for models that have clusters."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_mvae.models.moved import moved, upright
from pyro_mvae.models.vae import VAE, register_children

NEIGHBOURS, DIMENSIONS, PASSES, RESTARTS = 15, 10, 200, 10


def neighbourhoods(images: Tensor, num_clusters: int, *, seed: int = 0) -> Tensor:
    """The clusters of images, (n,): pictures are laid out so that near neighbours come to lie near, and a mixture is fitted.

    The graph of 15 nearest neighbours, by the pixels of pictures put `upright`, is laid out in ten dimensions; of ten mixtures
    with full covariances the likeliest is taken. The same for a seed.

    Raises:
        ValueError: for fewer images than clusters, or fewer than three.

    Source: McInnes, Healy and Melville, UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction, 2018.
    """
    from sklearn.mixture import GaussianMixture  # slow to import
    from sklearn.neighbors import NearestNeighbors

    if len(images) < max(num_clusters, 3):
        raise ValueError(f"there are {len(images)} images, expected {max(num_clusters, 3)} or more for {num_clusters} clusters")
    pixels = torch.cat([upright(some.cpu().float() / 255) for some in images.split(1000)])
    pixels = pixels.flatten(1).numpy()
    k = min(NEIGHBOURS, len(images) - 1)
    distances, nearest = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(pixels).kneighbors(pixels)
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of optional parts that are absent, and of parts of its graph that are apart
        from umap import UMAP  # slow to import

        layout = UMAP(
            n_components=min(DIMENSIONS, len(images) - 2),
            n_neighbors=k,
            min_dist=0.0,
            n_epochs=PASSES,
            precomputed_knn=(nearest, distances),
            random_state=seed,
            n_jobs=1,
        ).fit_transform(pixels)
    torch.set_num_threads(threads)  # they share a library of threads, which it tells another number
    mixture = GaussianMixture(num_clusters, reg_covar=1e-4, n_init=RESTARTS, random_state=seed)
    return torch.as_tensor(mixture.fit_predict(layout))


class Reader(nn.Module):
    """An encoder that learns to read what cluster a picture is of, however it is `moved`. Shares its parameters.

    y ~ Categorical(softmax(W loc(moved(x)) + b)), y observed. What neighbours agree on is learnt, their slips are not.

    Args:
        vae: whose encoder it is.
        num_clusters: how many values y has.

    Shapes: a batch is `labelled`: pictures (n, C, H, W) with their clusters in a channel more.
    """

    def __init__(self, vae: VAE, num_clusters: int):
        super().__init__()
        self.encoder, self.num_clusters = vae.encoder, num_clusters
        self.head = nn.Linear(vae.latent_dim, num_clusters)

    def model(self, x: Tensor) -> None:
        """p(y|x), with the site `y`."""
        register_children(self, lambda name: True)
        y = x[:, -1].flatten(1)[:, : self.num_clusters].argmax(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Categorical(logits=self.logits(moved(x[:, :-1])), validate_args=False), obs=y)

    def guide(self, x: Tensor) -> None:
        """Nothing is latent."""

    def logits(self, x: Tensor) -> Tensor:
        """Of y, for pictures (n, C, H, W); (n, num_clusters)."""
        return self.head(self.encoder(x)[0])

    @torch.no_grad()
    def read(self, images: Tensor, *, chunk: int = 1000) -> Tensor:
        """The likeliest cluster of images, uint8; (n,)."""
        self.eval()
        device = self.head.weight.device
        return torch.cat([self.logits(x.to(device).float() / 255).argmax(-1).cpu() for x in images.split(chunk)])


def labelled(images: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    """Pictures with a channel more, in which their clusters are written: pixel y is 255, the others 0.

    Shapes: uint8 (n, C, H, W), (n,) → uint8 (n, C + 1, H, W).

    Raises:
        ValueError: where a channel has fewer pixels than there are clusters.

    Example:
        >>> labelled(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 2]), 3)[:, 1].flatten(1).tolist()
        [[255, 0, 0, 0], [0, 0, 255, 0]]
    """
    n, _, height, width = images.shape
    if num_clusters > height * width:
        raise ValueError(f"num_clusters is {num_clusters}, expected {height * width} at most, the pixels of a picture")
    written = 255 * F.one_hot(clusters, height * width).to(torch.uint8)
    return torch.cat([images, written.view(n, 1, height, width)], 1)
