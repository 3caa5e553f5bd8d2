"""What the phone allows, and what a model takes of it, measured on the files that an app would load."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from pyro_mvae.evaluate.cost import num_macs
from pyro_mvae.export.executorch import load_executorch, lower_parts
from pyro_mvae.export.verify import inputs_for
from pyro_mvae.latency.timing import latency
from pyro_mvae.models import VAE

KB = 1000
UNITS = {"kb": "KB", "macs": "multiply-adds", "latency_us": "µs", "nll_loss": "nats"}


class BudgetError(ValueError):
    """No student is within the budget; `nearest` has what was nearest to it on each axis, see `Budget`."""

    def __init__(self, message: str, nearest: Mapping[str, float]):
        super().__init__(message)
        self.nearest = dict(nearest)


@dataclass(frozen=True)
class Cost:
    """What a model takes of a phone, to encode one image and decode it again.

    Attributes:
        kb: size of `encoder.pte` and `decoder.pte` together, in units of 1000 bytes.
        macs: multiply-adds.
        latency_us: µs of one call of each, p50, on one thread of this machine: a proxy, no phone's.
    """

    kb: float
    macs: int
    latency_us: float


@dataclass(frozen=True)
class Budget:
    """What the phone allows: None leaves an axis open.

    Args:
        kb, macs, latency_us: as in `Cost`.
        nll_loss: how many nats per image the NLL may be above the teacher's; below 0 where it is to be better.

    Raises:
        ValueError: when nothing is given, or a number that can't be.

    Example:
        >>> Budget(kb=32, nll_loss=1.0).over({"kb": 40.0, "macs": 10**6, "latency_us": 50.0, "nll_loss": 0.5})
        {'kb': 40.0}
    """

    kb: float | None = None
    macs: float | None = None
    latency_us: float | None = None
    nll_loss: float | None = None

    def __post_init__(self) -> None:
        if not self.given():
            raise ValueError(f"the budget is empty: give one or more of {', '.join(UNITS)}")
        for axis, bound in self.given().items():
            if not math.isfinite(bound) or (bound <= 0 and axis != "nll_loss"):
                expected = "a number" if axis == "nll_loss" else "more than 0"
                raise ValueError(f"{axis} of the budget is {bound}, expected {expected}")

    def given(self) -> dict[str, float]:
        """The axes that are bound."""
        return {axis: bound for axis, bound in asdict(self).items() if bound is not None}

    def costs(self) -> dict[str, float]:
        """Those of them that are known without training."""
        return {axis: bound for axis, bound in self.given().items() if axis != "nll_loss"}

    def over(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Which figures are above their bound, or are not known; axes that are missing are not looked at."""
        return {axis: figures[axis] for axis, bound in self.given().items() if axis in figures and not figures[axis] <= bound}

    def nearest(self, points: Iterable[Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
        """For each axis the point that is least on it among those that are within the budget on the others, else among all."""
        points = list(points)
        found = {}
        for axis in self.given():
            known = [point for point in points if axis in point and not math.isnan(point[axis])]
            others = [point for point in known if not set(self.over(point)) - {axis}]
            if known:
                found[axis] = min(others or known, key=lambda point: point[axis])
        return found

    def unmet(self, points: Iterable[Mapping[str, float]]) -> BudgetError:
        """The error that says how near one can come, and what else would be over the budget there."""

        def near(axis: str, point: Mapping[str, float]) -> str:
            also = [shown(other, value) for other, value in self.over(point).items() if other != axis and not math.isnan(value)]
            return f"{shown(axis, point[axis])}{' with ' if also else ''}{' and '.join(also)}"

        nearest = self.nearest(points)
        figures = {axis: f"nearest: {near(axis, point)}" for axis, point in nearest.items()}
        listing = ", ".join(
            f"{shown(axis, bound)} ({figures.get(axis, 'nothing was trained')})" for axis, bound in self.given().items()
        )
        return BudgetError(f"the budget can't be met: {listing}", {axis: point[axis] for axis, point in nearest.items()})


def shown(axis: str, value: float) -> str:
    """A figure as one reads it.

    Example:
        >>> shown("kb", 31.5), shown("macs", 1.25e6)
        ('31.5 KB', '1,250,000 multiply-adds')
    """
    number = f"{value:,.0f}" if axis == "macs" else f"{value:,.4g}"
    return f"{number} {UNITS[axis]}{' of NLL lost' if axis == 'nll_loss' else ''}"


def cost_of(model: VAE, images: Tensor | None = None) -> Cost:
    """Measure a model's files: its `.pte` are made, weighed and run.

    Args:
        model: float32, or quantised and calibrated.
        images: what to run them on; noise when None.

    Raises:
        ValueError: for a quantised model that was never calibrated.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> cost_of(MVAE((1, 8, 8), 4)).kb > 50
        True
    """
    contents, microseconds = lower_parts(model), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for part, content in contents.items():
            path = Path(folder) / f"{part}.pte"
            path.write_bytes(content)
            microseconds += latency(load_executorch(path)[1], inputs_for(part, model, images)[:1]).p50_us
    return Cost(sum(map(len, contents.values())) / KB, num_macs(model), round(microseconds, 1))
