"""From pictures read one at a time to a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mvae.data.holdout import held_out
from pyro_mvae.data.images import Data, Split
from pyro_mvae.data.pictures import decode


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture that could be read: uint8 values, shape (C, H, W), and the hash of the file they came from."""

    picture: Tensor
    digest: bytes
    caption: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, and why.

    Names come from files anyone may have made, so what can't be printed is replaced.

    Example:
        >>> str(Skipped("a\\nb.png", "damaged"))
        'a\ufffdb.png: damaged'
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in f"{self.path}: {self.reason}")


def sample(
    content: bytes,
    *,
    size: int,
    channels: int,
    caption: str = "",
    tags: tuple[str, ...] = (),
) -> Sample:
    """Decode one file; raises ValueError as `decode` does."""
    picture = decode(content, size=size, channels=channels)
    return Sample(picture, hashlib.sha256(content).digest(), caption=caption, tags=tags)


def assemble(name: str, items: Iterable[Sample | Skipped], *, seed: int) -> Data:
    """Split what was read into train and test, a tenth for the test, and name what was skipped.

    Files with the same bytes are on the same side. Captions and tags are there when any picture has one, and are empty
    for those that have none. While it runs it holds the pictures twice.

    Raises:
        ValueError: when nothing could be read, or there are fewer than two different pictures.
    """
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for item in items:
        if isinstance(item, Sample):
            samples.append(item)
        else:
            skipped.append(item)
    if not samples:
        first = f"; {len(skipped)} skipped, first {skipped[0]}" if skipped else ""
        raise ValueError(f"{name}: no picture could be read{first}")
    try:
        sides = held_out([item.digest for item in samples], seed=seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error} ({len(samples)} read, {len(skipped)} skipped)") from None
    captioned, tagged = any(item.caption for item in samples), any(item.tags for item in samples)

    def side(tested: bool) -> Split:
        chosen = [item for item, held in zip(samples, sides, strict=True) if held == tested]
        return Split(
            torch.stack([item.picture for item in chosen]),
            captions=tuple(item.caption for item in chosen) if captioned else None,
            tags=tuple(item.tags for item in chosen) if tagged else None,
        )

    train, test = side(False), side(True)
    return Data(name, train=train, test=test, binarization="none", skipped=tuple(map(str, skipped)))
