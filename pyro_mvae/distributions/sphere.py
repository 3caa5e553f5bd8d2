"""The uniform distribution on a sphere, and what distributions around a direction have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


def log_area(dim: int) -> float:
    """The logarithm of the area of the unit sphere in `dim` dimensions.

    Example:
        >>> math.exp(log_area(3)) / math.pi
        4.0...
    """
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


class SphereUniform(TorchDistribution):
    """x uniform on the unit sphere in `dim` dimensions.

    Args:
        dim: 2 or more.
        batch_shape: as usual.
        like: a tensor whose type and device draws have.

    Example:
        >>> torch.allclose(SphereUniform(3, [5]).sample().norm(dim=-1), torch.ones(5))
        True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    support = constraints.sphere  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    has_rsample = True

    def __init__(self, dim: int, batch_shape: Sequence[int] = (), *, like: Tensor | None = None):
        if dim < 2:
            raise ValueError(f"dim is {dim}, expected 2 or more")
        self.dim, self.like = dim, torch.empty(0) if like is None else like
        super().__init__(torch.Size(batch_shape), torch.Size([dim]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SphereUniform:
        return SphereUniform(self.dim, batch_shape, like=self.like)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, self.dim)
        return F.normalize(torch.randn(shape, dtype=self.like.dtype, device=self.like.device), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(self.dim))

    def entropy(self) -> Tensor:
        return self.like.new_full(self.batch_shape, log_area(self.dim))


class Directional(TorchDistribution):
    """x on the unit sphere, around a direction: what depends on the angle t = locᵀx alone.

    Args:
        loc: the direction, unit vectors; (…, d).
        concentration: κ, above 0; (…).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.sphere, "concentration": constraints.positive}  # pyright: ignore[reportIncompatibleMethodOverride]
    support = constraints.sphere  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, *, validate_args: bool | None = None):
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.dim = loc.shape[-1]
        if self.dim < 2:
            raise ValueError(f"loc has {self.dim} dimension, expected 2 or more: a sphere has no fewer")
        if not concentration.is_floating_point():
            concentration = concentration.to(loc.dtype)
        self.loc, self.concentration = loc.expand(*batch_shape, self.dim), concentration.expand(batch_shape)
        super().__init__(torch.Size(batch_shape), torch.Size([self.dim]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Directional:
        loc, concentration = self.loc.expand(*batch_shape, self.dim), self.concentration.expand(batch_shape)
        return type(self)(loc, concentration, validate_args=False)

    def cosine(self, sample_shape: Any) -> Tensor:
        """Draws of t = locᵀx, differentiable in the concentration."""
        raise NotImplementedError

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """t along the first axis, a uniform direction across it, and both reflected so that the axis becomes loc.

        The mirror is across axis − loc, or across axis + loc with the sign turned, whichever is longer: √2 or more, so that
        nothing is lost where loc is near to the axis.
        """
        t = self.cosine(sample_shape)[..., None]
        across = torch.randn((*t.shape[:-1], self.dim - 1), dtype=t.dtype, device=t.device)
        x = torch.cat([t, (1 - t.square()).clamp(min=1e-12).sqrt() * F.normalize(across, dim=-1)], -1)
        axis = torch.zeros_like(self.loc)
        axis[..., 0] = 1
        sign = torch.where(self.loc[..., :1] < 0, -1.0, 1.0).to(self.loc.dtype)
        mirror = F.normalize(axis + sign * self.loc, dim=-1)
        return sign * (2 * (x * mirror).sum(-1, keepdim=True) * mirror - x)

    @property
    def mean(self) -> Tensor:
        return self.loc * self.mean_cosine()[..., None]

    def mean_cosine(self) -> Tensor:
        raise NotImplementedError
