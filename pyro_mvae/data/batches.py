"""From images in memory to what a model is trained on and tested with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

BINARIZATIONS = ("none", "dynamic")
ORDER, DRAW, FIXED = 1, 2, 3  # what a stream of random numbers is for


def batches(
    images: Tensor, *, batch_size: int, epoch: int = 0, seed: int = 0, binarization: str = "none", start: int = 0
) -> Iterator[Tensor]:
    """Yield one epoch of shuffled float32 batches, shape (b, C, H, W), in [0, 1]; the last may be short, or one longer.

    A single image that would be left over goes with the batch before it: batch normalisation has no variance of one image.

    `images` is uint8, shape (n, C, H, W), on the CPU. With binarization "dynamic" each value is 1 with probability
    pixel / 255 and otherwise 0. The order depends on seed and epoch alone, the draws on those and the batch's number, so
    `start=k` goes on as if the first k batches had been taken; global random states play no part.

    Raises:
        ValueError: when the images aren't uint8, the batch size isn't positive, seed or epoch are negative, the
            binarization is unknown, or start is not between 0 and the number of batches.

    Example:
        >>> images = torch.full((5, 1, 8, 8), 255, dtype=torch.uint8)
        >>> [len(batch) for batch in batches(images, batch_size=3)]
        [3, 2]
        >>> [len(batch) for batch in batches(images, batch_size=2)]
        [2, 3]
        >>> [len(batch) for batch in batches(images, batch_size=2, start=1)]
        [3]
    """
    count = num_batches(len(images), batch_size=batch_size)
    require_bytes(images)
    require_binarization(binarization)
    if not 0 <= start <= count:
        raise ValueError(f"start is {start}, expected 0 to {count}, the number of batches")
    pixels = images.numpy()  # NumPy, as torch's threads cost more than they save on arrays of a batch's size
    order = stream(ORDER, seed, epoch).permutation(len(pixels))

    def batch(index: int) -> Tensor:
        end = len(order) if index == count - 1 else (index + 1) * batch_size
        chosen = pixels[order[index * batch_size : end]]
        if binarization == "dynamic":
            return torch.from_numpy(drawn(chosen, stream(DRAW, seed, epoch, index)))
        return torch.from_numpy(chosen / np.float32(255))

    return map(batch, range(start, count))


def binarize(images: Tensor, *, seed: int) -> Tensor:
    """Draw zeros and ones once for a whole set, float32 of the same shape, each 1 with probability pixel / 255.

    The same images and seed give the same draw, so that two evaluations see the same pictures.

    Raises:
        ValueError: when the images aren't uint8, or the seed is negative.

    Example:
        >>> binarize(torch.tensor([0, 255], dtype=torch.uint8), seed=0)
        tensor([0., 1.])
    """
    require_bytes(images)
    return torch.from_numpy(drawn(images.numpy(), stream(FIXED, seed)))


def shown(images: Tensor, *, binarization: str = "none", seed: int = 0) -> Tensor:
    """All images as a model is shown them to be measured: float32 in [0, 1], binarised once by `seed` where that is asked for.

    Raises:
        ValueError: for an unknown binarization, no images, or images to binarise that aren't uint8.

    Example:
        >>> shown(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[0., 1.]]]])
    """
    require_binarization(binarization)
    require_tensor(images)
    if not len(images):
        raise ValueError("there are no images, expected 1 or more")
    if images.is_floating_point() and not 0 <= images.amin() <= images.amax() <= 1:
        raise ValueError("images of floating point are not in [0, 1]: divide them by 255, or give uint8")
    if binarization == "dynamic":
        return binarize(images, seed=seed)
    return images if images.is_floating_point() else images.float() / 255


def num_batches(n: int, *, batch_size: int) -> int:
    """Return how many batches an epoch over n images has: the short one counts, a single image does not make one.

    Raises:
        ValueError: when the batch size isn't positive.

    Example:
        >>> num_batches(6, batch_size=4), num_batches(5, batch_size=4)
        (2, 1)
    """
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}, expected 1 or more")
    lone = n > batch_size > 1 and n % batch_size == 1
    return -(-n // batch_size) - lone


def drawn(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    # Of the 255 values 0 to 254, exactly `pixel` are below a pixel's.
    thresholds = random.integers(0, 255, size=pixels.shape, dtype=np.uint8)
    return (thresholds < pixels).astype(np.float32)


def stream(purpose: int, seed: int, *numbers: int) -> np.random.Generator:
    if min(seed, *numbers, 0) < 0:
        raise ValueError(f"seed {seed} with {numbers}: expected no negative seed or epoch")
    return np.random.default_rng((purpose, seed, *numbers))


def require_binarization(binarization: str) -> None:
    if binarization not in BINARIZATIONS:
        raise ValueError(f"binarization is '{binarization}', expected one of: {', '.join(BINARIZATIONS)}")


def scaled(images: Tensor) -> Tensor:
    """Images of 256 levels as numbers in [0, 1]; ValueError for anything else.

    Example:
        >>> scaled(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[0., 1.]]]])
    """
    require_bytes(images)
    return images.float() / 255


def require_tensor(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise ValueError(f"expected images as a tensor, got a {type(images).__name__}: torch.as_tensor makes one of an array")


def require_bytes(images: Any) -> None:
    require_tensor(images)
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, expected torch.uint8 with values 0 to 255")
