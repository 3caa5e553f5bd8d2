"""What a von Mises–Fisher distribution needs of Bessel functions, for any dimension and concentration.

All is computed in float64 and from ratios I_{m+1} / I_m, which neither overflow nor vanish: r_{m−1} = 1 / (2m / κ + r_m), taken
downwards, forgets where it was started.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEPS = 30
"""Steps above the order wanted at which the recurrence is started."""


def ratios_by_kappa(kappa: Tensor, lowest: float, count: int) -> tuple[list[Tensor], Tensor]:
    """I_{m+1}(κ) / (κ I_m(κ)) for m = lowest, lowest + 1, …, finite at κ = 0; and the derivative of the first ratio, r′.

    It follows r′_{m−1} = r_{m−1}² (2m / κ² − r′_m), without cancellation.
    """
    ratio, slope = started(kappa, lowest + count + STEPS)
    kept: list[Tensor] = []
    for step in range(count + STEPS):
        m = lowest + count + STEPS - step
        ratio = 1 / (2 * m + kappa**2 * ratio)
        slope = ratio**2 * (2 * m - kappa**2 * slope)
        if step >= STEPS:
            kept.append(ratio)
    return kept[::-1], slope


def started(kappa: Tensor, m: float) -> tuple[Tensor, Tensor]:
    """About r / κ and r′: Amos' bound, bettered once by r′ = 1 − r² − (2m + 1) r / κ with the bound's derivative on the left.

    Source: Amos, Computation of Modified Bessel Functions and Their Ratios, 1974.
    """
    root = torch.sqrt((m + 1.5) ** 2 + kappa**2)
    bound = 1 / (m + 0.5 + root)
    slope = bound - kappa**2 * bound**2 / root
    bend = bound**2 / root * (kappa**2 / root**2 + 2 * kappa**2 * bound / root - 3)  # r″ / κ
    discriminant = torch.sqrt((2 * m + 1) ** 2 + 4 * kappa**2 * (1 - slope))
    ratio = 2 * (1 - slope) / (2 * m + 1 + discriminant)
    return ratio, ((2 * m + 1) * ratio - kappa**2 * bend) / discriminant


def mean_cosine_of(kappa: Tensor, dim: int) -> Tensor:
    """A_d(κ), in float64."""
    return kappa * ratios_by_kappa(kappa, dim / 2 - 1, 1)[0][0]


# Single operations of a graph: their gradients are known, and the recurrences are not worth recording.
_mean_cosine = torch.library.custom_op(
    "pyro_mvae::mean_cosine",
    lambda kappa, dim: mean_cosine_of(kappa.double(), dim).to(kappa.dtype),
    mutates_args=(),
    schema="(Tensor kappa, int dim) -> Tensor",
)
_slope = torch.library.custom_op(
    "pyro_mvae::mean_cosine_slope",
    lambda kappa, dim: slope_of(kappa.double(), dim).to(kappa.dtype),
    mutates_args=(),
    schema="(Tensor kappa, int dim) -> Tensor",
)
_log_normalizer = torch.library.custom_op(
    "pyro_mvae::von_mises_fisher_log_normalizer",
    lambda kappa, dim: log_normalizer_of(kappa.double(), dim).to(kappa.dtype),
    mutates_args=(),
    schema="(Tensor kappa, int dim) -> Tensor",
)
for operation in (_mean_cosine, _slope, _log_normalizer):
    operation.register_fake(lambda kappa, dim: torch.empty_like(kappa))


def remember(ctx, inputs, output) -> None:
    kappa, ctx.dim = inputs
    ctx.save_for_backward(kappa)


_mean_cosine.register_autograd(
    lambda ctx, gradient: (gradient * _slope(ctx.saved_tensors[0], ctx.dim), None), setup_context=remember
)
_log_normalizer.register_autograd(
    lambda ctx, gradient: (-gradient * _mean_cosine(ctx.saved_tensors[0], ctx.dim), None), setup_context=remember
)


def slope_of(kappa: Tensor, dim: int) -> Tensor:
    """A′ = 1 − A² − (d − 1) A / κ, the variance of the cosine, in float64."""
    return ratios_by_kappa(kappa, dim / 2 - 1, 1)[1]


def log_normalizer_of(kappa: Tensor, dim: int) -> Tensor:
    order = dim / 2 - 1
    if dim % 2:  # from I_{1/2}: sinh
        lowest, start = 0.5, 0.5 * math.log(2 / math.pi) + kappa + torch.log(sinh_ratio(kappa))
    else:
        lowest, start = 0.0, torch.special.i0e(kappa).log() + kappa
    count = round(order - lowest)
    steps = ratios_by_kappa(kappa, lowest, count)[0] if count else []
    return -0.5 * dim * math.log(2 * math.pi) - start - sum(ratio.log() for ratio in steps)


def sinh_ratio(kappa: Tensor) -> Tensor:
    """sinh(κ) e^{−κ} / κ, 1 at 0."""
    small = kappa < 1e-4
    safe = torch.where(small, 1.0, kappa)
    return torch.where(small, 1 - kappa, -torch.expm1(-2 * safe) / (2 * safe))


def mean_cosine(kappa: Tensor, dim: int) -> Tensor:
    """A_d(κ) = I_{d/2}(κ) / I_{d/2−1}(κ): how far the mean of a von Mises–Fisher distribution is from the centre of the sphere.

    Args:
        kappa: κ, 0 or more, of any shape.
        dim: d, 2 or more.

    Returns: of the shape of κ, from 0 to 1; differentiable once.

    Example:
        >>> mean_cosine(torch.tensor([0.0, 1.0, 1e6]), 3)  # coth κ − 1 / κ
        tensor([0.0000, 0.3130, 1.0000])
    """
    return _mean_cosine(kappa, dim)


def log_normalizer(kappa: Tensor, dim: int) -> Tensor:
    """log C_d(κ), with C_d(κ) = κ^{d/2−1} / ((2π)^{d/2} I_{d/2−1}(κ)): of the density C exp(κ μᵀx) on the unit sphere.

    Args: as `mean_cosine`.

    Returns: of the shape of κ; differentiable twice: its derivative is −A_d(κ).

    Example:
        >>> log_normalizer(torch.tensor(0.0), 3).exp() * 4 * math.pi  # uniform
        tensor(1.0000)
    """
    return _log_normalizer(kappa, dim)
