"""What a data set is once it is in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """The pictures of one side, train or test, and what is known of each.

    `images` is uint8, shape (n, C, H, W), one byte a value. `labels` is int64, shape (n,); `captions` and `tags` have
    one entry a picture. What the source doesn't tell is None.

    Raises:
        ValueError: when the images aren't uint8 with four dimensions, the labels no whole numbers from 0, or the lengths differ.

    Example:
        >>> split = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), captions=("one", "two"))
        >>> len(split), split.labels is None
        (2, True)
    """

    images: Tensor
    labels: Tensor | None = None
    captions: tuple[str, ...] | None = None
    tags: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"images are {found}, expected torch.uint8 of shape (n, C, H, W)")
        labels = self.labels
        if labels is not None and (labels.dtype != torch.int64 or labels.ndim != 1 or (len(labels) and int(labels.min()) < 0)):
            low = f", the least {labels.min().item():g}" if labels.numel() else ""
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}{low}, expected torch.int64 of shape (n,), 0 or more"
            )
        for name in ("labels", "captions", "tags"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self):
                raise ValueError(f"{len(values)} {name} for {len(self)} images, expected one for each")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory: two splits, and how its pixels become the values a model is trained on.

    `binarization` is "dynamic" when pixels are probabilities, from which zeros and ones are drawn anew for each batch,
    and "none" when they are the values themselves. `skipped` names what could not be read, each entry "path: reason".

    Raises:
        ValueError: when the two splits' pictures differ in shape.

    Example:
        >>> split = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
        >>> Data("black", train=split, test=split, binarization="none").shape
        (3, 8, 8)
    """

    name: str
    train: Split
    test: Split
    binarization: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        train, test = (tuple(split.images.shape[1:]) for split in (self.train, self.test))
        if train != test:
            raise ValueError(f"{self.name}: train pictures are {train} and test pictures {test}, expected one shape")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every picture."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def spread(images: Tensor, number: int) -> Tensor:
    """So many images, or all where there are fewer, from all over the set: those of a folder lie class by class.

    Example:
        >>> spread(torch.arange(10), 6), spread(torch.arange(2), 6)
        (tensor([0, 1, 3, 5, 6, 8]), tensor([0, 1]))
    """
    return images if len(images) <= number else images[torch.arange(number) * len(images) // number]
