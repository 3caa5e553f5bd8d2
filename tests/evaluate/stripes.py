"""Images that anybody tells apart."""

from __future__ import annotations

import torch

from pyro_mvae.data import Split


def stripes(n, *, seed=0):
    """Images of four kinds that anybody tells apart: a bright stripe in one of four places."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    images = torch.randint(0, 40, (n, 1, 16, 16), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * label : 4 * label + 4] += 200
    return Split(images.byte(), labels=labels)
