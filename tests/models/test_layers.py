"""Layers that are trained as matrix products compute what torch's convolutions do, and so do their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pyro_mvae import MVAE
from pyro_mvae.nets.conv import Gather, Halving, Spread, doubling, swift
from pyro_mvae.theta import Weights

CHANNELS = st.sampled_from([1, 3])
SIZES = st.tuples(st.integers(2, 9), st.integers(2, 9))


def layer_and_input(kind: str, channels: int, size: tuple[int, int]) -> tuple[nn.Module, torch.Tensor]:
    height, width = size
    halves = ((height + 1) // 2, (width + 1) // 2)
    return {
        "gather": lambda: (Gather(channels, 5, size), torch.randn(3, channels, *size)),
        "spread": lambda: (Spread(5, channels, size), torch.randn(3, 5, 1, 1)),
        "halving": lambda: (Halving(channels, 5), torch.randn(3, channels, *size)),
        "doubling": lambda: (doubling(5, channels, (height, width)), torch.randn(3, 5, *halves)),
    }[kind]()


@pytest.mark.parametrize("kind", ["gather", "spread", "halving", "doubling"])
@given(CHANNELS, SIZES, st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_a_layer_trained_as_a_product_is_the_convolution_it_is_evaluated_as(kind, channels, size, memory_format):
    layer, x = layer_and_input(kind, channels, size)
    x = x.to(memory_format=memory_format).requires_grad_()
    outcomes = []
    for net in (layer.train(), layer.eval()):
        y = net(x)
        outcomes.append((y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for product, convolution in zip(*outcomes, strict=True):
        torch.testing.assert_close(product, convolution, rtol=1e-4, atol=1e-4)


def test_weights_of_their_own_for_each_datum():
    layer, x, weights = doubling(5, 1, (6, 8)), torch.randn(3, 5, 3, 4), torch.randn(3, 5, 1, 4, 4)
    one_by_one = [F.conv_transpose2d(x[i : i + 1], weights[i], layer.bias, stride=2, padding=1) for i in range(3)]
    together = torch.func.functional_call(layer, {"weight": weights}, (x,))
    torch.testing.assert_close(together, torch.cat(one_by_one))


def test_bayesian_weights_are_the_same_ones_in_training_and_evaluation():
    vae, z, theta = MVAE((1, 28, 28), 4, theta="weights"), torch.randn(3, 4), torch.randn(3, 4)
    decoder = swift(vae.decoder.eval())
    as_product = vae.theta.decode(decoder, z, theta)
    as_convolution = vae.theta.decode(decoder.eval(), z, theta)
    torch.testing.assert_close(as_product, as_convolution)
    assert not torch.allclose(as_product, decoder(z))


def test_bayesian_weights_of_a_decoder_that_is_one_layer():
    decoder, z, theta = doubling(5, 1, (6, 8)), torch.randn(3, 5, 3, 4), torch.randn(3, 2)
    weights = Weights(decoder, 2)
    torch.testing.assert_close(weights.decode(decoder, z, theta), weights.decode(decoder.eval(), z, theta))
