"""Weights chosen from a palette."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyro_mvae import MVAE, fit
from pyro_mvae.compress import Palettize, PruneChannels, Quantize
from pyro_mvae.evaluate.cost import num_macs
from pyro_mvae.nets.palette import PalettizedConv, clustered, spread, with_scales, with_weights
from tests.catalog import MODELS


def test_a_palette_is_found_moves_and_keeps_its_places(images):
    """Weights that are three heaps get the means of the heaps; training moves values, not which weight has which."""
    torch.manual_seed(0)
    heaps = torch.tensor([-1.0, 0.0, 2.0]).repeat(300)
    weight = (heaps + 0.01 * torch.randn(900)).view(30, 30, 1, 1)
    palette, indices = clustered(weight, bits=2)
    assert (palette[indices.long()] - weight).abs().max() < 0.05
    few = torch.tensor([0.5, -0.5]).repeat(8).view(4, 4, 1, 1)
    palette, indices = clustered(few, bits=4)
    assert torch.equal(palette[indices.long()], few)
    vae = Palettize(bits=4)(MVAE((1, 16, 16), 4, theta="weights"))
    layers = {name: layer for name, layer in vae.named_modules() if isinstance(layer, PalettizedConv)}
    before = {name: copy.deepcopy(layer) for name, layer in layers.items()}
    fit(vae, images, epochs=1)
    for name, layer in layers.items():
        assert not torch.equal(layer.palette, before[name].palette)
        assert torch.equal(layer.indices, before[name].indices)
        assert not torch.equal(layer.scale, before[name].scale)
        assert len(layer.chosen().unique()) <= 16
    last = list(vae.decoder.modules())[-1]
    assert isinstance(last, nn.ConvTranspose2d)  # its weights are Bayesian
    assert num_macs(vae) == num_macs(MVAE((1, 16, 16), 4, theta="weights"))


CONVOLUTIONS = [
    nn.Conv2d(4, 8, 3),
    nn.Conv2d(8, 8, 3, groups=8, bias=False),
    nn.Conv2d(8, 6, 3, groups=2),
    nn.ConvTranspose2d(4, 8, 3),
    nn.ConvTranspose2d(8, 8, 3, groups=8),
    nn.ConvTranspose2d(8, 6, 3, groups=2, bias=False),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_scales_are_of_output_channels(conv):
    """No channel is lost to others whose weights are larger by orders of magnitude; the layer computes what its copies do."""
    torch.manual_seed(0)
    ones, sizes = torch.ones(conv.out_channels), torch.logspace(-3, 3, conv.out_channels)
    weight = torch.randn_like(conv.weight)
    unit = spread(conv, sizes)
    layer = PalettizedConv.of(with_weight(conv, weight * unit), bits=4)
    whole = PalettizedConv(copy.deepcopy(conv), ones, *clustered(weight * unit, bits=4))
    scaled, unscaled = (float((each.weight / unit - weight).detach().square().mean().sqrt()) for each in (layer, whole))
    assert scaled < 0.25
    assert unscaled > 1
    x = torch.randn(2, conv.in_channels, 6, 6)
    torch.testing.assert_close(with_weights(layer)(x), layer(x))
    torch.testing.assert_close(with_scales(layer)(x), layer(x), rtol=1e-4, atol=1e-3)


def with_weight(conv, weight):
    conv = copy.deepcopy(conv)
    conv.weight.data = weight
    return conv


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (Palettize(), Quantize(), "a palettised model can't be quantised"),
        (Palettize(), PruneChannels(), "a palettised model can't be pruned"),
        (Palettize(), Palettize(), "a palettised model can't be given palettes"),
        (Quantize(), Palettize(), "a quantised model can't be given palettes"),
    ],
)
def test_palettes_come_last(first, then, message, images):
    with pytest.raises(ValueError, match=message):
        then(first(MODELS["VAE"]((1, 16, 16))), images)
