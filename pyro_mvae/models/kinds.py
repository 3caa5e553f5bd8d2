"""Clusters of what stays the same kind of thing when its picture is moved: a start for models that have clusters."""

from __future__ import annotations

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_mvae.models.vae import VAE, register_children

HEADS, FINER = 5, 5


class Kinds(nn.Module):
    """An encoder that learns which pictures are of a kind: those that could be the same one, moved. Shares its parameters.

    Several linear heads read a cluster y from loc(x), and as many a finer one; the factor `kinds` is the information I(y; y′)
    between a picture's cluster and that of the same picture `moved`, summed over the images of a batch, the mean over the heads.
    As y has to say much about y′, clusters are sure, about equally frequent, and blind to where and how large a thing is.

    Args:
        vae: whose encoder it is.
        num_clusters: how many kinds there are.

    Source: Ji, Henriques and Vedaldi, Invariant Information Clustering, 2019.
    """

    def __init__(self, vae: VAE, num_clusters: int):
        super().__init__()
        self.encoder = vae.encoder
        self.heads = nn.Linear(vae.latent_dim, HEADS * num_clusters)
        self.finer = nn.Linear(vae.latent_dim, HEADS * FINER * num_clusters)

    def model(self, x: Tensor) -> None:
        """The factor `kinds`."""
        register_children(self, lambda name: True)
        loc, loc_moved = self.encoder(torch.cat([x, moved(x)]))[0].chunk(2)
        shared = [mutual_information(read(head, loc), read(head, loc_moved)).mean() for head in (self.heads, self.finer)]
        pyro.factor("kinds", x.shape[0] * torch.stack(shared).sum())

    def guide(self, x: Tensor) -> None:
        """Nothing is latent."""

    @torch.no_grad()
    def assigned(self, images: Tensor, *, seed: int = 0, chunk: int = 1000) -> Tensor:
        """The kinds of images, uint8, as the head with the most information between them and them moved has it; (n,)."""
        self.eval()
        device, parts = self.heads.weight.device, []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for some in images.split(chunk):
                x = some.to(device).float() / 255
                parts.append([read(self.heads, self.encoder(each)[0]) for each in (x, moved(x))])
        p, q = (torch.cat(each) for each in zip(*parts, strict=True))
        return p[:, int(mutual_information(p, q).argmax())].argmax(-1)


def read(heads: nn.Linear, loc: Tensor) -> Tensor:
    """What each head makes of codes; (n, d) → (n, heads, K)."""
    return heads(loc).unflatten(-1, (HEADS, -1)).softmax(-1)


def mutual_information(p: Tensor, q: Tensor) -> Tensor:
    """I(y; y′) in nats of two readings of the same images, their joint distribution made symmetric; log K at most.

    Shapes: probabilities (n, …, K), (n, …, K) → (…).

    Source: Ji, Henriques and Vedaldi, Invariant Information Clustering, 2019.

    Example:
        >>> sure = torch.eye(2)
        >>> round(mutual_information(sure, sure).item(), 4), round(mutual_information(sure, torch.full((2, 2), 0.5)).item(), 4)
        (0.6931, 0.0)
    """
    joint = torch.einsum("n...k,n...l->...kl", p, q) / p.shape[0]
    joint = ((joint + joint.mT) / 2).clamp(min=1e-8)
    return (joint * (joint.log() - joint.sum(-2, keepdim=True).log() - joint.sum(-1, keepdim=True).log())).sum((-2, -1))


def moved(x: Tensor, *, rotation: float = 0.4, shift: float = 0.12, scale: float = 0.3) -> Tensor:
    """Each picture turned by up to `rotation` radians, shifted by up to a share of its side, scaled and sheared at random.

    Shapes: (n, C, H, W) → (n, C, H, W).

    Example:
        >>> moved(torch.ones(2, 1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    def up_to(extent: float) -> Tensor:
        return extent * (2 * torch.rand(x.shape[0], device=x.device) - 1)

    angle, size, shear = up_to(rotation), up_to(scale).exp(), up_to(scale)
    cos, sin = size * angle.cos(), size * angle.sin()
    rows = [
        torch.stack([cos, shear * cos - sin, up_to(2 * shift)], 1),
        torch.stack([sin, shear * sin + cos, up_to(2 * shift)], 1),
    ]
    places = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, places, align_corners=False)
