"""A figure, with all that must be known to compare it with another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One figure of one model.

    Attributes:
        name, unit: what was measured.
        value: the mean over `repeats`.
        sd: the standard deviation of the repeats; None for one alone.
        protocol: how, in words: binarisation, what was fitted to what.
        split: which images, "test" or "train".
        num_images, num_samples: how many images, and how many samples of each.
        seeds: of the repeats; none where nothing is drawn.
    """

    name: str
    value: float
    unit: str
    protocol: str
    num_images: int
    sd: float | None = None
    split: str = "test"
    num_samples: int = 1
    seeds: tuple[int, ...] = ()

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.name} {self.value:.2f}{spread} {self.unit}"

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self) | {"seeds": list(self.seeds)}


def over_repeats(values: Sequence[float], **about: Any) -> Measurement:
    """The mean and the standard deviation of repeated figures; ValueError where there are none.

    Example:
        >>> print(over_repeats([1.0, 3.0], name="accuracy", unit="%", protocol="", num_images=9, seeds=(0, 1)))
        accuracy 2.00 ± 1.41 %
    """
    if not values:
        raise ValueError(f"{about['name']} was to be measured 0 times, expected 1 or more repeats or seeds")
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Measurement(value=statistics.fmean(values), sd=sd, **about)
