"""Dynamic hyper-parameters (section 2.6 of the paper): controllers that read what training shows and change the run.

A controller is a value with three things: the `knob` that it turns, the `moment` at which it is asked ("step", "window" or
"epoch"), and a call, (what is `Now`, its memory) → a `Change` or None. Its memory is a dictionary of what JSON can hold, kept in
the checkpoint, so that a run that is resumed is controlled as if nothing had happened. One of your own needs no more than that.

Knobs are "lr", the factor by which the learning rates of θ and φ are multiplied (those of several controllers multiply),
"kl" and "theta_kl", β and β′, each penalty's λ by its name, "batch_size", and "epochs".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from pyro_mvae.inference import penalties
from pyro_mvae.numbers import above, count, number

MOMENTS = ("step", "window", "epoch")
TEST_LOSS = "test_loss"


@dataclass(frozen=True)
class Now:
    """What a controller sees of a run.

    Attributes:
        model: as it is.
        epoch: how many epochs are done; a fraction within one.
        epochs: how many there are to be.
        terms: means of the objective's terms over the last window, in nats per datum; empty but at the moment "window".
        history: a row for each epoch done.
        value: what the knob is at; for "lr", what this controller has set.
    """

    model: nn.Module
    epoch: float
    epochs: int
    terms: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    value: float


@dataclass(frozen=True)
class Change:
    """A knob's new value, and why; what follows a fixed plan needs no reason, and is not logged."""

    value: float
    reason: str = ""


@runtime_checkable
class Controller(Protocol):
    """What `fit` can be given to change a run while it goes on."""

    @property
    def knob(self) -> str: ...
    @property
    def moment(self) -> str: ...
    def __call__(self, now: Now, memory: dict[str, Any], /) -> Change | None: ...


@dataclass(frozen=True)
class OneCycle:
    """The learning rate rises in a line over the first `rise` of the run, then falls as half a cosine to 0.

    Source: Smith and Topin, 2018.

    Example:
        >>> [round(OneCycle().factor(share), 2) for share in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.01, 0.5, 1.0, 0.5, 0.0]
    """

    rise: float = 0.1
    knob: str = "lr"
    moment: str = "step"

    def __post_init__(self) -> None:
        share(self.rise, "rise")

    def factor(self, done: float) -> float:
        """The factor after a share of the run."""
        if done < self.rise:
            return max(done / self.rise, 0.01)
        return 0.5 * (1 + math.cos(math.pi * min((done - self.rise) / (1 - self.rise), 1.0)))

    def __call__(self, now: Now, memory: dict[str, Any]) -> Change | None:
        return Change(self.factor(now.epoch / now.epochs))


@dataclass(frozen=True)
class WarmUp:
    """A knob rises in a line from `start` to `end` over the first `epochs`, and stays there.

    With "lr" the numbers are factors of its peak; with "kl" this is the warm-up of β, from 0 if need be.

    Example:
        >>> now = Now(model=nn.Identity(), epoch=2.5, epochs=10, terms={}, history=[], value=0.0)
        >>> WarmUp("kl", epochs=5)(now, {})
        Change(value=0.5, reason='')
    """

    knob: str
    epochs: float
    start: float = 0.0
    end: float = 1.0
    moment: str = "step"

    def __post_init__(self) -> None:
        above(self.epochs, "epochs")
        for name in ("start", "end"):
            if not 0 <= number(getattr(self, name), name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")

    def __call__(self, now: Now, memory: dict[str, Any]) -> Change | None:
        value = self.start + (self.end - self.start) * min(now.epoch / self.epochs, 1.0)
        return None if value == now.value else Change(value)


@dataclass(frozen=True)
class Plateau:
    """The learning rate is multiplied by `factor` when `on` was not bettered by `least` for `patience` epochs.

    Args:
        on: a column of the history; "test_loss" for the bound on images not trained on.
    """

    factor: float = 0.5
    patience: int = 3
    on: str = TEST_LOSS
    least: float = 0.0
    knob: str = "lr"
    moment: str = "epoch"

    def __post_init__(self) -> None:
        share(self.factor, "factor")
        count(self.patience, "patience")

    def __call__(self, now: Now, memory: dict[str, Any]) -> Change | None:
        if waited(now, memory, on=self.on, least=self.least) < self.patience:
            return None
        memory["waited"] = 0
        return Change(now.value * self.factor, f"{self.on} was not bettered for {self.patience} epochs")


@dataclass(frozen=True)
class GrowBatch:
    """The batch grows by `factor`, up to `largest`, when `on` was not bettered by `least` for `patience` epochs.

    A larger batch does what a lower learning rate does, at fewer steps an epoch (Smith et al., 2018).
    """

    largest: int
    factor: float = 2.0
    patience: int = 3
    on: str = TEST_LOSS
    least: float = 0.0
    knob: str = "batch_size"
    moment: str = "epoch"

    def __post_init__(self) -> None:
        count(self.largest, "largest")
        above(self.factor, "factor", 1.0)
        count(self.patience, "patience")

    def __call__(self, now: Now, memory: dict[str, Any]) -> Change | None:
        if now.value >= self.largest or waited(now, memory, on=self.on, least=self.least) < self.patience:
            return None
        memory["waited"] = 0
        size = min(round(now.value * self.factor), self.largest)
        return Change(size, f"{self.on} was not bettered for {self.patience} epochs")


@dataclass(frozen=True)
class EarlyStopping:
    """The run ends when `on` was not bettered by `least` for `patience` epochs.

    The model has its last weights then; `fit(..., keep="best")` gives it those of the best epoch.
    """

    patience: int = 5
    on: str = TEST_LOSS
    least: float = 0.0
    knob: str = "epochs"
    moment: str = "epoch"

    def __post_init__(self) -> None:
        count(self.patience, "patience")

    def __call__(self, now: Now, memory: dict[str, Any]) -> Change | None:
        done = len(now.history)
        if done >= now.epochs or waited(now, memory, on=self.on, least=self.least) < self.patience:
            return None
        return Change(done, f"{self.on} was not bettered for {self.patience} epochs: {memory['best']:.4g} at best")


def share(value: float, name: str) -> None:
    """Raise a ValueError for what is not between 0 and 1."""
    if not 0 < number(value, name) < 1:
        raise ValueError(f"{name} is {value}, expected a share between 0 and 1")


def waited(now: Now, memory: dict[str, Any], *, on: str, least: float) -> int:
    """For how many epochs a column of the history was not bettered; takes the last one into account."""
    if on not in now.history[-1]:
        raise ValueError(f"a controller waits for {on!r}, but the history has only: {', '.join(now.history[-1])}")
    latest = now.history[-1][on]
    if latest < memory.get("best", math.inf) - least:
        memory["best"], memory["waited"] = latest, 0
    else:
        memory["waited"] = memory.get("waited", 0) + 1
    return memory["waited"]


Measure = Callable[[Now], float]


@dataclass(frozen=True)
class Multiplier:
    """A weight as the Lagrange multiplier of a constraint, measure ≤ target: it rises while that is broken, falls while it holds.

    weight ← weight · exp(rate · error), at each window, error = (a moving average of the measure − target) / target, cut to ±1.

    Args:
        knob: "kl", "theta_kl", or a penalty's name.
        measure: what is to be at most `target`: a name among the terms, such as "kl", or one of `MEASURES`.
        target: above 0.
        rate: how fast the weight follows.
        sense: 1, or −1 where a larger weight makes the measure larger.
        bounds: of the weight.

    Raises:
        ValueError: for a target or a rate that is not above 0.

    Source: for β, Rezende and Viola, 2018 (GECO); the multiplier is kept in logarithms, so that it stays positive.
    """

    knob: str
    measure: str
    target: float
    rate: float = 0.1
    sense: int = 1
    bounds: tuple[float, float] = (1e-8, 1e4)
    moment: str = "window"

    def __post_init__(self) -> None:
        for name in ("target", "rate"):
            above(getattr(self, name), name)
        if self.sense not in (1, -1):
            raise ValueError(f"sense is {self.sense}, expected 1, or -1 where a larger weight makes the measure larger")
        if not 0 < self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds are {self.bounds}, expected two numbers above 0, the lower first")

    def __call__(self, now: Now, memory: dict[str, Any]) -> Change | None:
        if now.value == 0:
            raise ValueError(f"the weight of {self.knob!r} is 0, and a multiplier of 0 stays so: begin with one above 0")
        if self.measure not in MEASURES and self.measure not in now.terms:
            known = ", ".join((*MEASURES, *now.terms))
            raise ValueError(f"a multiplier is to hold {self.measure!r}, but there are only: {known}")
        latest = MEASURES[self.measure](now) if self.measure in MEASURES else now.terms[self.measure]
        smooth = memory["smooth"] = 0.5 * memory.get("smooth", latest) + 0.5 * latest
        error = min(max((smooth - self.target) / self.target, -1.0), 1.0)
        low, high = self.bounds
        value = min(max(now.value * math.exp(self.sense * self.rate * error), low), high)
        if value == now.value:
            return None
        return Change(value, f"{self.measure} is {smooth:.4g}, to be at most {self.target:.4g}")


def rate(target: float, **more: Any) -> Multiplier:
    """β such that the rate, KL(q(z|x) ‖ p(z)), comes down to `target` nats per datum and stays there.

    Example:
        >>> rate(20.0).knob
        'kl'
    """
    return Multiplier("kl", "kl", target, **more)


def distortion(target: float, **more: Any) -> Multiplier:
    """β such that the distortion, −E_q[log p(x|z)], is at most `target` nats per datum at the lowest rate (GECO)."""
    return Multiplier("kl", "likelihood", target, sense=-1, **more)


def weight_sparsity(target: float, *, knob: str = "prune", **more: Any) -> Multiplier:
    """The λ of (15) such that at least a share `target` of the weights is as good as zero.

    Raises:
        ValueError: for a target that is not between 0 and 1.
    """
    share(target, "target")
    return Multiplier(knob, "weights left", 1 - target, **more)


def quantization_error(target: float, *, bits: int = 8, **more: Any) -> Multiplier:
    """The λ of (17) such that a weight differs from its rounded self by `target` on average, as a share of its layer's mean.

    Raises:
        ValueError: for bits that no measure is made for.
    """
    if f"rounding to {bits} bits" not in MEASURES:
        raise ValueError(f"bits is {bits}, expected 2 to 16")
    return Multiplier("round", f"rounding to {bits} bits", target, **more)


def distill_kl(target: float, **more: Any) -> Multiplier:
    """The λ of (19) such that teacher and student differ by `target` nats per datum."""
    return Multiplier("distill", "distill", target, **more)


def code_l1(target: float, **more: Any) -> Multiplier:
    """The λ of (21) such that ‖α‖₁ is `target` per datum."""
    return Multiplier("sparse", "sparse", target, **more)


@torch.no_grad()
def weights_left(now: Now) -> float:
    """The share of weights that are more than a hundredth of the largest of their layer: what pruning would leave."""
    tensors = penalties.weights(now.model)
    left = sum(int((w.abs() > 0.01 * w.abs().max()).sum()) for w in tensors)
    return left / sum(w.numel() for w in tensors)


def rounding(bits: int) -> Measure:
    """Σ|w − w_q| / Σ|w|, to `bits`."""

    @torch.no_grad()
    def measure(now: Now) -> float:
        return float(penalties.quantization_error(now.model, bits=bits) / penalties.l1(penalties.weights(now.model)))

    return measure


MEASURES: dict[str, Measure] = {
    "weights left": weights_left,
    **{f"rounding to {bits} bits": rounding(bits) for bits in range(2, 17)},
}
"""What is measured on the model itself, by name."""


def check(controllers: Iterable[Controller], *, weights: Iterable[str], has_test: bool) -> None:
    """Raise a ValueError for controllers that can't do their work in a run."""
    controllers, weights, taken = list(controllers), list(weights), set()
    for controller in controllers:
        if isinstance(controller, type) or not isinstance(controller, Controller):
            raise ValueError(f"{controller!r} is no controller: expected values with a knob and a moment, such as OneCycle()")
        known = ["lr", "batch_size", "epochs", *weights]
        if controller.knob not in known:
            raise ValueError(f"{controller} is for {controller.knob!r}, but this run has only: {', '.join(known)}")
        if controller.moment not in MOMENTS:
            raise ValueError(f"{controller} acts at {controller.moment!r}, expected one of: {', '.join(MOMENTS)}")
        if controller.knob in taken and controller.knob != "lr":
            raise ValueError(f"two controllers are for {controller.knob!r}: leave one out")
        taken.add(controller.knob)
        if getattr(controller, "on", None) == TEST_LOSS and not has_test:
            raise ValueError(f"{controller} needs the bound on test images: give fit a Data, or test=")
