"""Channels that are made equally large between two convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyro_mvae import VAE, fit
from pyro_mvae.compress import Quantize
from pyro_mvae.nets.equalize import MOST, adjacent, by_group, equalize, is_depthwise, rescale
from pyro_mvae.nets.fold import fold_batch_norm


def uneven(net: Any, *, depthwise_only: bool = False) -> Any:
    """A net whose channels were made 2⁻⁵ to 1 times as large where one layer alone reads them; it computes the same."""
    net = fold_batch_norm(net)
    with torch.no_grad():
        for first, second in adjacent(net):
            if is_depthwise(second) or not depthwise_only:
                rescale(first, second, 2.0 ** -torch.arange(first.out_channels).remainder(6))
    return net


@given(
    st.sampled_from(["conv", "mobile", "mlp"]),
    st.lists(st.integers(2, 9), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_nets_compute_the_same(net, widths, depthwise_only, seed):
    torch.manual_seed(seed)
    vae = VAE((3, 13, 18), 4, net=net, widths=widths, hidden=8).eval()
    x, z = torch.rand(5, 3, 13, 18), torch.randn(5, 4)
    for part, inputs in ((vae.encoder, x), (vae.decoder, z)):
        part = uneven(part)
        before = copy.deepcopy(part)
        with torch.no_grad():
            equalize(part, lambda part=part, inputs=inputs: part(inputs), depthwise_only=depthwise_only)
            got, expected = part(inputs), before(inputs)
        for one, other in zip(*[each if isinstance(each, tuple) else (each,) for each in (got, expected)], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)  # kernels may add up in another order


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6)),
        (nn.Conv2d(2, 6, 1), nn.Conv2d(6, 12, 3, groups=6)),
        (nn.Conv2d(2, 6, 1, bias=False), nn.Conv2d(6, 4, 3, groups=2)),
        (nn.ConvTranspose2d(2, 6, 2), nn.ConvTranspose2d(6, 3, 3)),
        (nn.ConvTranspose2d(2, 6, 2, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2)),
    ],
)
def test_each_kind_of_convolution_is_scaled_where_its_channels_are(first, second, seed):
    torch.manual_seed(seed)
    for layer in (first, second):
        layer.reset_parameters()
    net = uneven(nn.Sequential(first, nn.ReLU(), second).eval())
    x = torch.rand(4, 2, 8, 8)
    before = net(x)
    largest = [net[:2](x).amax((0, 2, 3)).detach()]
    equalize(net, lambda: net(x))
    largest.append(net[:2](x).amax((0, 2, 3)).detach())
    assert torch.equal(net(x), before)
    assert by_group(second).shape[1:3] == (second.out_channels // second.groups, 6 // second.groups)
    assert largest[1].max() == largest[0].max(), "no scale of an activation is made coarser"
    if second.groups == 6:  # to a power of two as large as the largest, or 64 times as large as before
        assert ((2 * largest[1] > largest[1].max()) | (largest[1] == MOST * largest[0])).all()
    else:
        assert (largest[1] >= largest[0]).all()


def test_channels_that_are_read_twice_or_given_twice_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = torch.relu(self.a(x))  # no module: nothing knows that a scale passes it
            y = self.b(self.b(y))
            return self.c(y) + y

    assert adjacent(Twice()) == []
    assert len(adjacent(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity(), nn.ReLU(), nn.Conv2d(2, 2, 1)))) == 1
    assert adjacent(nn.Sequential(nn.Conv2d(1, 2, 1), nn.SiLU(), nn.Conv2d(2, 2, 1))) == []


@pytest.mark.parametrize("bits", [4, 8])
def test_depthwise_nets_lose_no_more_where_their_channels_are_uneven(bits, images):
    """One scale for small channels and large ones says nothing of the small ones, which a depthwise kernel may ask about."""
    torch.manual_seed(0)
    vae = VAE((1, 16, 16), 4, net="mobile", widths=(12, 24), hidden=32)
    fit(vae, images, epochs=8, lr=4e-3)
    vae.eval()
    other = copy.deepcopy(vae)
    other.encoder = uneven(vae.encoder, depthwise_only=True)
    x = images[:64].float() / 255
    assert torch.allclose(other.encode(x), vae.encode(x), atol=1e-5)
    errors = []
    for model in (vae, other):
        small = Quantize(weight_bits=bits)(model, images).eval()
        errors.append(float((small.encoder.body(x) - vae.encoder.body(x)).square().mean().detach()))
    assert errors[1] < 2 * errors[0]
