"""The two-sample test: its statistic by hand, how often it is wrong, and what it sees."""

import pytest
import torch

from pyro_mvae.evaluate.drift import discrepancies, drift, gaussian


def test_statistic_by_hand():
    values = torch.tensor([[0.0], [1.0], [3.0], [4.0], [6.0]], dtype=torch.float64)
    kernel = gaussian(values)
    a, b = range(2), range(2, 5)
    within_a = sum(kernel[i, j] for i in a for j in a if i != j) / 2
    within_b = sum(kernel[i, j] for i in b for j in b if i != j) / 6
    across = sum(kernel[i, j] for i in a for j in b) / 6
    first = torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    assert float(discrepancies(kernel, first)) == pytest.approx(float(within_a + within_b - 2 * across), rel=1e-12)
    squared = torch.tensor([1.0, 9, 16, 36, 4, 9, 25, 1, 9, 4])
    expected = torch.exp(-1.0 / squared.median())
    assert float(kernel[0, 1]) == pytest.approx(float(expected), rel=1e-6)


def test_level():
    """p ≤ 0.1 in a tenth of tests where nothing changed: 400 tests, beyond 3.9 standard deviations in 1 of 10,000 runs."""
    generator = torch.Generator().manual_seed(0)
    rejected = 0
    for seed in range(400):
        a, b = (torch.randn(20, 3, generator=generator) for _ in range(2))
        rejected += drift(a, b, permutations=99, seed=seed).p_value <= 0.1
    assert abs(rejected - 40) <= 3.9 * (400 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("change", [lambda z: z + 0.7, lambda z: 2 * z, lambda z: z[:, :1].expand_as(z)])
def test_changes_are_seen(change):
    """A shift, a scale, and a dependence between dimensions whose marginals are as before."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(150, 3, generator=generator) for _ in range(2))
    assert drift(a, change(b)).p_value < 0.005
    assert drift(a, b).p_value > 0.01


def test_equal_codes():
    assert drift(torch.zeros(4, 2), torch.zeros(5, 2), permutations=19).p_value == 1.0


@pytest.mark.parametrize("shapes", [((5, 2), (5, 3)), ((1, 2), (5, 2)), ((5, 2), (5,))])
def test_shapes(shapes):
    with pytest.raises(ValueError, match="codes have shapes"):
        drift(*(torch.zeros(shape) for shape in shapes))
