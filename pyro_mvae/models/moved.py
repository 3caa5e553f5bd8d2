"""Pictures, moved: what a cluster of things should not depend on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
