"""How near a picture is to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_mvae.data.batches import scaled
from pyro_mvae.evaluate.measurement import Measurement
from pyro_mvae.models import VAE
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import count

WINDOW, SPREAD = 11, 1.5


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in [0, 1], in dB; (n, C, H, W) twice → (n,); ∞ for the same.

    Raises:
        ValueError: for two shapes, or pictures that are not of floating point.

    Example:
        >>> psnr(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.1))
        tensor([20.])
    """
    check_pair(a, b)
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of pictures in [0, 1], 1 for the same; (n, C, H, W) twice → (n,).

    Gaussian window of 11 pixels, standard deviation 1.5, constants 0.01 and 0.03, where the window is inside the picture.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.

    Raises:
        ValueError: for pictures smaller than the window, two shapes, or pictures that are not of floating point.

    Example:
        >>> x = torch.rand(1, 3, 16, 16)
        >>> ssim(x, x)
        tensor([1.])
    """
    check_pair(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"pictures have shape {tuple(a.shape)}, expected sides of {WINDOW} or more")
    offsets = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SPREAD**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(a.shape[1], 1, WINDOW, WINDOW)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=a.shape[1])

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance, small, smaller = mean(a * b) - mean_a * mean_b, 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + small) / (mean_a**2 + mean_b**2 + small)
    structure = (2 * covariance + smaller) / (variance_a + variance_b + smaller)
    return (luminance * structure).mean((1, 2, 3))


def check_pair(a: Tensor, b: Tensor) -> None:
    """Raise a ValueError for what are not two batches of pictures in [0, 1] of one shape."""
    if a.shape != b.shape or a.ndim != 4 or not (a.is_floating_point() and b.is_floating_point()):
        found = " and ".join(f"{each.dtype} of shape {tuple(each.shape)}" for each in (a, b))
        raise ValueError(f"pictures are {found}, expected two batches in [0, 1] of one shape, (n, C, H, W)")


@torch.no_grad()
def reconstruction(model: VAE, images: Tensor, *, split: str = "test", chunk: int = 500) -> tuple[Measurement, ...]:
    """PSNR and SSIM of what a model makes of the posterior mean of images against the grey or colour images themselves.

    Images smaller than the window of SSIM have a PSNR alone.

    Args:
        images: uint8, (n, C, H, W).
        split: which they are, for the record.

    Raises:
        ValueError: for no images, some of another shape, or some that are not uint8.
    """
    model.check_bytes(images)
    count(chunk, "chunk")
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {"PSNR": [], "SSIM": []}
    with evaluating(model):
        for part in images.split(chunk):
            x = scaled(part.to(device))
            made = model.decode(model.encode(x))
            found["PSNR"].append(psnr(made, x))
            if min(x.shape[-2:]) >= WINDOW:
                found["SSIM"].append(ssim(made, x))
    protocol = "picture of the posterior mean against the image, not binarised; mean over images"
    means = {name: float(torch.cat(parts).mean()) for name, parts in found.items() if parts}
    units = {"PSNR": "dB", "SSIM": ""}
    return tuple(Measurement(name, value, units[name], protocol, len(images), split=split) for name, value in means.items())
