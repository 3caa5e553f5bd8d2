"""Which students are worth a try: shapes of nets, each as large as the budget allows, and smaller ones beside them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pyro_mvae.compress.shrink import beside_nets
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.cost import num_macs
from pyro_mvae.models import VAE
from pyro_mvae.nets.kinds import usual_sizes
from pyro_mvae.search.budget import KB, Budget
from pyro_mvae.search.student import ROUND_TO, estimated_bytes, rounded

TAPERS = {"mobile": (1.0, 0.75, 4 / 3), "conv": (1.0, 4 / 3)}
"""What each width is multiplied by from one map to the next smaller one, besides what is usual."""
CONV_DEPTHS = (2, 3)
"""Maps of convolutional nets."""
CONV_HIDDEN = ((6, 0.5), (3, 1.0), (1, 1.0))
"""Their hidden units, × what is usual: a dense layer is cheap where multiply-adds are dear; and their encoders, as in `Plan`."""
MLP = ((2, 0.5), (2, 1.0), (1, 1.0))
"""Hidden layers of fully connected nets, and their encoders: a weight of theirs is one multiply-add, of a map's it is many.

What is tried first, when there is time for few students, does best in long searches for few multiply-adds.
"""
SHARES = (1.0, 0.7, 0.45)
"""Of the budget: one student as large as it allows, and two that show what less would cost."""
SCALES = [0.12 * 1.08**i for i in range(48)]

Estimates = Mapping[str, Callable[[VAE], float]]


@dataclass(frozen=True)
class Plan:
    """The kind and the sizes of a student's nets, and the bits of its weights.

    Attributes:
        encoder: its widths and hidden units, × the decoder's, which are those given.

    Example:
        >>> Plan("mobile", (8, 16), 32, 4, 8).name, Plan("conv", (8, 16), 288, 4, 8, encoder=0.5).name
        ('mobile-w8-16-h32-z4-b8', 'conv-w8-16-h288-z4-b8-e0.5')
    """

    net: str
    widths: tuple[int, ...]
    hidden: int
    latent_dim: int
    weight_bits: int
    encoder: float = 1.0

    @property
    def name(self) -> str:
        """What its files are called."""
        widths = "-".join(map(str, self.widths))
        name = f"{self.net}{widths and f'-w{widths}'}-h{self.hidden}-z{self.latent_dim}-b{self.weight_bits}"
        return name if self.encoder == 1 else f"{name}-e{self.encoder:g}"

    def student(self, teacher: VAE, *, seed: int = 0) -> VAE:
        """A new model of the teacher's class with these nets, and the teacher's prior where it learned one."""

        def made(share: float) -> VAE:
            *widths, hidden = (size if share == 1 else rounded(share * size) for size in (*self.widths, self.hidden))
            sizes = {"net": self.net, "widths": widths, "hidden": hidden, "latent_dim": self.latent_dim}
            return type(teacher)(**{**teacher.config, **sizes})

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = made(1.0)
            if self.encoder != 1:
                student.encoder = made(self.encoder).encoder
        student.load_state_dict({**student.state_dict(), **beside_nets(teacher, like=student)})
        return student


def candidates(
    teacher: VAE,
    budget: Budget,
    *,
    latent_dims: Sequence[int],
    weight_bits: Sequence[int],
    latency: Callable[[VAE], float],
    progress: Track = untracked,
) -> list[Plan]:
    """Plans within the budget, by estimate, those as large as it allows first; none where it allows nothing.

    Args:
        latency: an estimate in µs, asked for where the budget has such a bound; it takes minutes on a machine that has none yet.
    """
    estimates = estimators(latency)
    found: list[Plan] = []
    cases = list(itertools.product(SHARES, shapes(teacher), weight_bits, latent_dims))
    for share, shape, bits, latent_dim in progress(cases, "Laying out students", len(cases)):
        plan = largest(teacher, shape, latent_dim, bits, budget=budget, share=share, estimates=estimates)
        if plan is not None and plan not in found:
            found.append(plan)
    return found


@dataclass(frozen=True)
class Shape:
    """Nets to be scaled: their kind, widths and hidden units."""

    net: str
    widths: tuple[float, ...]
    hidden: float
    encoder: float = 1.0

    def plan(self, scale: float, latent_dim: int, bits: int) -> Plan:
        """The nets of a size."""
        sizes = [rounded(scale * n) for n in (*self.widths, self.hidden)]
        return Plan(self.net, tuple(sizes[:-1]), sizes[-1], latent_dim, bits, self.encoder)


def shapes(teacher: VAE) -> list[Shape]:
    """As usual, with fewer maps, narrower or wider towards the small ones: mobile, convolutional, fully connected by turns."""
    widths, hidden = usual_sizes("mobile", teacher.image_shape)
    mobile = [
        tapered("mobile", widths[:depth], hidden, taper)
        for depth in range(len(widths), max(len(widths) - 3, 0), -1)
        for taper in TAPERS["mobile"]
    ]
    (first, *_), hidden = usual_sizes("conv", teacher.image_shape)
    conv = [
        tapered("conv", [first * 2**i for i in range(depth)], hidden * more, taper, encoder)
        for depth in CONV_DEPTHS
        for taper in TAPERS["conv"]
        for more, encoder in CONV_HIDDEN
    ]
    _, hidden = usual_sizes("mlp", teacher.image_shape)
    mlp = [Shape("mlp", (hidden,) * (layers - 1), hidden, encoder) for layers, encoder in MLP]
    return [shape for each in itertools.zip_longest(mobile, conv, mlp) for shape in each if shape is not None]


def least(teacher: VAE, budget: Budget, *, latent_dim: int, bits: int, latency: Callable[[VAE], float]) -> list[Plan]:
    """The smallest plan there is on each axis that a budget binds, by estimate: how near one can come."""
    plans = [shape.plan(SCALES[0], latent_dim, bits) for shape in shapes(teacher)]
    estimates = estimators(latency)
    return list(dict.fromkeys(min(plans, key=lambda plan: estimates[axis](plan.student(teacher))) for axis in budget.costs()))


def estimators(latency: Callable[[VAE], float]) -> Estimates:
    """What each axis of a budget is estimated by."""
    return {"macs": num_macs, "kb": lambda model: estimated_bytes(model) / KB, "latency_us": latency}


def tapered(net: str, widths: Sequence[int], hidden: int, taper: float, encoder: float = 1.0) -> Shape:
    return Shape(net, tuple(width * taper**i for i, width in enumerate(widths)), hidden * taper ** (len(widths) - 1), encoder)


def largest(
    teacher: VAE, shape: Shape, latent_dim: int, bits: int, *, budget: Budget, share: float, estimates: Estimates
) -> Plan | None:
    """The largest scale of a shape at which no estimate is above its share of the budget; None when there is none.

    Costs grow with the scale, so that it is found by halving, once the smallest is known to fit: a budget that nothing is within
    is soon told. Without a bound on costs the shape is taken as it is, × `share`.
    """
    bounds = budget.costs()
    if not bounds:
        return shape.plan(share, latent_dim, bits)

    def fits(scale: float) -> bool:
        student = shape.plan(scale, latent_dim, bits).student(teacher)
        return all(estimate(student) <= share * bounds[axis] for axis, estimate in estimates.items() if axis in bounds)

    if not fits(SCALES[0]):
        return None
    first_over = bisect.bisect_left(range(1, len(SCALES)), True, key=lambda i: not fits(SCALES[i])) + 1
    return shape.plan(SCALES[first_over - 1], latent_dim, bits)


def smaller(plan: Plan) -> Plan | None:
    """The plan with about a twelfth less of everything; None when nothing is left to be taken."""
    sizes = [min(rounded(n / 1.08), max(n - ROUND_TO, ROUND_TO)) for n in (*plan.widths, plan.hidden)]
    less = replace(plan, widths=tuple(sizes[:-1]), hidden=sizes[-1])
    return None if less == plan else less
