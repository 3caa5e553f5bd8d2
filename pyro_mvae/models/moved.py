"""Pictures, moved and put upright: where and how slanted a thing is says nothing of its kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moved(x: Tensor, *, rotation: float = 0.4, shift: float = 0.12, scale: float = 0.3) -> Tensor:
    """Each picture turned by up to `rotation` radians, shifted by up to a share of its side, scaled and sheared at random.

    What comes in from beyond an edge is as the edge, so that a white background stays white.

    Shapes: (n, C, H, W) → (n, C, H, W).

    Example:
        >>> moved(torch.ones(2, 1, 8, 8)).allclose(torch.ones(2, 1, 8, 8))
        True
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
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)


def upright(x: Tensor) -> Tensor:
    """Each picture shifted and sheared so that what differs from its background is in the middle and leans to neither side.

    With m(r, c) the difference of a pixel from the picture's median: its means of rows and columns are those of the picture, and
    the covariance of r and c is 0.

    Shapes: (n, C, H, W) → (n, C, H, W).

    Example:
        >>> corner = torch.zeros(1, 1, 9, 9)
        >>> corner[..., 1, 2] = 1.0
        >>> upright(corner)[0, 0].argmax().item(), 9 * 4 + 4
        (40, 40)
    """
    height, width = x.shape[2:]
    mass = (x - x.flatten(2).median(-1).values[..., None, None]).abs().sum(1)
    mass = mass / mass.sum((1, 2), keepdim=True).clamp(min=1e-6)
    rows, columns = torch.linspace(-1, 1, height, device=x.device), torch.linspace(-1, 1, width, device=x.device)
    r, c = (mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)
    dr, dc = rows - r[:, None], columns - c[:, None]
    lean = torch.einsum("nhw,nh,nw->n", mass, dr, dc) / (mass.sum(2) * dr.square()).sum(1).clamp(min=1e-3)
    zero, one = torch.zeros_like(r), torch.ones_like(r)
    places = torch.stack([torch.stack([one, lean, c], 1), torch.stack([zero, one, r], 1)], 1)
    grid = F.affine_grid(places, list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)
