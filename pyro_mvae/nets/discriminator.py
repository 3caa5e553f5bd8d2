"""A net that tells pictures from what a decoder makes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pyro_mvae.nets.conv import Shape, halvings


class Discriminator(nn.Module):
    """x → features, by which pictures are compared, and the logit of x being real.

    Strided convolutions and leaky ReLUs, without a normalisation over the batch, which would tell real from made by itself.

    Args:
        image_shape: (channels, height, width), any size from 8 up.
        widths: channels after each halving.
        hidden: units of the features.

    Shapes: (n, C, H, W) in [0, 1] → (n, hidden), (n,).

    Example:
        >>> import torch
        >>> features, logit = Discriminator((1, 28, 28))(torch.rand(2, 1, 28, 28))
        >>> features.shape, logit.shape
        (torch.Size([2, 64]), torch.Size([2]))
    """

    def __init__(self, image_shape: Shape, *, widths: Sequence[int] = (16, 32), hidden: int = 64):
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out in widths:
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
            channels = out
        places = halvings(height, len(widths))[-1] * halvings(width, len(widths))[-1]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * places, hidden))
        self.judge = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return features, self.judge(features)[:, 0]
