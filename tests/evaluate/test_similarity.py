"""Structural similarity, against windows by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_mvae import VAE, evaluate
from pyro_mvae.evaluate import psnr, ssim


def test_structural_similarity_of_constant_pictures_by_hand():
    """Without variance only the luminance is left: (2ab + c) / (a² + b² + c)."""
    a, b = torch.full((2, 1, 12, 12), 0.3), torch.full((2, 1, 12, 12), 0.6)
    expected = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)
    torch.testing.assert_close(ssim(a, b), torch.full((2,), expected), rtol=1e-4, atol=0)
    torch.testing.assert_close(psnr(a, b), torch.full((2,), -20 * math.log10(0.3)))
    with pytest.raises(ValueError, match="sides of 11 or more"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_structural_similarity_of_one_window_by_hand():
    """A picture as large as the window: its weighted moments, by numpy in float64."""
    a, b = np.random.default_rng(0).random((2, 11, 11))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(line, line) / line.sum() ** 2
    mean_a, mean_b = (w * a).sum(), (w * b).sum()
    var_a, var_b = (w * a * a).sum() - mean_a**2, (w * b * b).sum() - mean_b**2
    cov = (w * a * b).sum() - mean_a * mean_b
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    found = ssim(*(torch.as_tensor(x, dtype=torch.float32)[None, None] for x in (a, b)))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_structural_similarity_is_symmetric_and_falls_with_noise():
    x, noise = torch.rand(4, 3, 20, 24), torch.randn(4, 3, 20, 24)
    values = [ssim(x, (x + sd * noise).clamp(0, 1)) for sd in (0.0, 0.05, 0.2)]
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()
    torch.testing.assert_close(ssim(x, noise), ssim(noise, x))


def test_pictures_too_small_for_a_window_have_no_similarity():
    found = evaluate.reconstruction(VAE((1, 8, 8), 4), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert [measure.name for measure in found] == ["PSNR"]
