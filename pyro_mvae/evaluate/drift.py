"""Whether codes still come from where they came from: a two-sample test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PERMUTATIONS = 1999


@dataclass(frozen=True)
class Drift:
    """MMD² between two samples, and how often one at least as large is seen where nothing has changed."""

    statistic: float
    p_value: float


@torch.no_grad()
def drift(reference: Tensor, codes: Tensor, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Drift:
    """Test whether codes are distributed as reference codes are, by the unbiased MMD² with a Gaussian kernel.

    MMD² = E k(a, a′) + E k(b, b′) − 2 E k(a, b), over pairs of different codes. The p-value is the share of permutations of all
    codes, these two samples among them, with an MMD² at least as large: where both are of one distribution, p ≤ α comes about in
    a share of α of all tests at most, whatever the distribution is.

    Args:
        reference, codes: (n, d) and (m, d), of two or more each.
        permutations: how many, random.

    Raises:
        ValueError: for fewer than two codes, or codes of other sizes.

    Source: Gretton et al., A Kernel Two-Sample Test, 2012.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> a, b = torch.randn(100, 2), torch.randn(100, 2)
        >>> drift(a, b).p_value > 0.01, drift(a, b + 1).p_value < 0.01
        (True, True)
    """
    if reference.ndim != 2 or codes.ndim != 2 or reference.shape[1] != codes.shape[1] or min(len(reference), len(codes)) < 2:
        shapes = f"{tuple(reference.shape)} and {tuple(codes.shape)}"
        raise ValueError(f"codes have shapes {shapes}, expected (n, d) and (m, d) with two or more of each")
    together = torch.cat([reference, codes]).double()
    kernel = gaussian(together)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(together), generator=generator) for _ in range(permutations)], 1)
    first = torch.zeros(len(together), permutations + 1, dtype=torch.float64)
    first[: len(reference), 0] = 1
    first[:, 1:].scatter_(0, orders[: len(reference)], 1.0)
    statistics = discrepancies(kernel, first)
    as_large = int((statistics >= statistics[0] - 1e-12).sum())
    return Drift(float(statistics[0]), as_large / (permutations + 1))


def gaussian(values: Tensor) -> Tensor:
    """k(a, b) = exp(−|a − b|² / 2h²) of all pairs, h² half their median squared distance; 0 for a value with itself."""
    squared = torch.cdist(values, values).square()
    pairs = squared[torch.ones_like(squared, dtype=torch.bool).triu(1)]
    return torch.exp(-squared / pairs.median().clamp(min=1e-12)).fill_diagonal_(0)


def discrepancies(kernel: Tensor, first: Tensor) -> Tensor:
    """The unbiased MMD² for each column of `first`, which says with ones what belongs to the first sample."""
    second = 1 - first
    n, m = first[:, 0].sum(), second[:, 0].sum()
    with_first, with_second = kernel @ first, kernel @ second
    within = (first * with_first).sum(0) / (n * (n - 1)) + (second * with_second).sum(0) / (m * (m - 1))
    return within - 2 * (first * with_second).sum(0) / (n * m)
