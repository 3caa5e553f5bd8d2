"""Codes with exact zeros."""

from __future__ import annotations

from torch import Tensor, nn


class Thresholded(nn.Module):
    """An encoder whose locs are soft-thresholded: sign(loc) max(|loc| − t, 0), what is below t becomes 0.

    It is the mode of p(z|loc) where loc = z + noise of variance σ² and z has a Laplace prior of scale σ²/t. Two ReLUs, which
    every runtime has.

    Args:
        net: x → (loc, scale).
        threshold: t, in units of the code.

    Source: Donoho, De-noising by Soft-Thresholding, 1995.

    Example:
        >>> import torch
        >>> net = Thresholded(nn.Identity(), 0.5)
        >>> net((torch.tensor([[-2.0, 0.3, 0.6]]), torch.ones(1, 3)))[0]
        tensor([[-1.5000,  0.0000,  0.1000]])
    """

    def __init__(self, net: nn.Module, threshold: float):
        super().__init__()
        self.net, self.threshold = net, threshold

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.net(x)
        return (loc - self.threshold).relu() - (-loc - self.threshold).relu(), scale
