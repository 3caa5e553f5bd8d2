"""Weights chosen from a palette."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_mvae import MVAE, fit
from pyro_mvae.compress import Palettize, PruneChannels, Quantize
from pyro_mvae.evaluate.cost import num_macs
from pyro_mvae.nets.palette import PalettizedConv, clustered
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
    before = {name: (layer.palette.detach().clone(), layer.indices.clone()) for name, layer in layers.items()}
    fit(vae, images, epochs=1)
    for name, layer in layers.items():
        assert not torch.equal(layer.palette, before[name][0])
        assert torch.equal(layer.indices, before[name][1])
        assert len(layer.weight.unique()) <= 16
    last = list(vae.decoder.modules())[-1]
    assert isinstance(last, nn.ConvTranspose2d)  # its weights are Bayesian
    assert num_macs(vae) == num_macs(MVAE((1, 16, 16), 4, theta="weights"))


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
