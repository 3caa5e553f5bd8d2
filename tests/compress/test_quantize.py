"""Weights and activations rounded to integers."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_mvae import MVAE, VAE, fit, load_model, save_model
from pyro_mvae.compress import Quantize
from pyro_mvae.inference.asvi import negative_bound
from pyro_mvae.nets.fold import CONVOLUTIONS
from pyro_mvae.nets.quantized import as_floats, as_integers, round_biases
from pyro_mvae.nets.rounding import ActivationQuantizer, QuantizedConv
from tests.catalog import MODELS
from tests.seen import having_seen


def test_quantising_after_training_is_ready_at_once(images):
    vae = VAE((1, 16, 16), 4, widths=(8, 12), hidden=16)
    fit(vae, images, epochs=8, lr=4e-3)
    before = negative_bound(vae, images)
    quantized = {bits: Quantize(weight_bits=bits)(vae, images).eval() for bits in (2, 4, 8)}
    assert abs(negative_bound(quantized[8], images) - before) < 0.02 * before
    z = torch.randn(64, 4)
    errors = {bits: float((small.decode(z) - vae.decode(z)).square().mean().detach()) for bits, small in quantized.items()}
    assert errors[8] < errors[4] < errors[2]


def test_the_objective_is_of_the_decoder_that_rounds(images):
    """The bound of a pair is that of integers, worked out by hand from the same code, and not that of its floats."""
    x = images[:32].float() / 255
    floats = VAE((1, 16, 16), 4, widths=(8, 12), hidden=16)
    fit(floats, images, epochs=8, lr=4e-3)
    vae = Quantize(weight_bits=3)(floats.eval(), images).eval()
    pyro.set_rng_seed(3)
    bound = Trace_ELBO().loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(3)
    code = vae.posterior(x)
    z = code.rsample()
    log_ratio = (vae.prior(len(x)).log_prob(z) - code.log_prob(z)).sum()

    def by_hand(decoder):
        return -float((dist.Bernoulli(logits=decoder(z)).log_prob(x).sum() + log_ratio).detach())

    assert bound == pytest.approx(by_hand(as_integers(vae.decoder)), rel=1e-3), "but for ties, and biases of 32 bits"
    assert bound != pytest.approx(by_hand(floats.decoder), rel=1e-2)


def test_weights_of_few_bits_have_few_levels_in_the_integers_too():
    conv = nn.Conv2d(3, 5, 3)
    for bits in (2, 4, 8):
        levels = QuantizedConv(conv, bits=bits).integers()
        assert int(levels.abs().max()) == 2 ** (bits - 1) - 1
    with pytest.raises(ValueError, match="can't have 9 bits"):
        QuantizedConv(conv, bits=9)


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0, 1e3])
def test_scales_are_numbers_that_float16_has(size):
    """Weights stay within half a step of what they are rounded to, but the largest, where their scale was rounded down."""
    conv = nn.Conv2d(3, 5, 3).requires_grad_(False)
    nn.init.normal_(conv.weight, std=size)
    quantized = QuantizedConv(conv)
    scales = quantized.scales()
    assert torch.equal(scales, scales.half().float())
    assert (scales > 0).all()
    steps = (quantized.rounded_weight() - conv.weight).abs().amax((1, 2, 3)) / scales
    clipped = conv.weight.abs().amax((1, 2, 3)) / scales - 127
    assert (steps <= clipped.clamp(min=0.5) + 1e-4).all()


@given(st.floats(-9, 2), st.floats(-9, 2), st.floats(-9, 2), st.sampled_from([2, 4, 8]))
@settings(deadline=None)
def test_a_bias_is_a_number_of_32_bits(size, bias, high, bits):
    """Also of a layer whose weights, or whose input, came to nothing."""
    quantizer = ActivationQuantizer(bounds=(0.0, 10**high))
    layer = QuantizedConv(nn.Conv2d(1, 2, 1).requires_grad_(False), bits=bits)
    layer.conv.weight.copy_(torch.tensor([0.0, 10**size]).view(2, 1, 1, 1))
    layer.conv.bias.fill_(10**bias)
    steps = layer.conv.bias / (quantizer.qparams()[0] * layer.scales())
    assert float(steps.max()) < 2**31


def lost(layer, conv, x, kept):
    """What each channel of a convolution loses by rounding, in mean squares."""
    return (kept(layer(x)) - kept(conv(x))).square().mean((0, 2, 3))


@given(st.booleans(), st.sampled_from([2, 4, 8]), st.floats(1, 100), st.floats(0.1, 10), st.integers(0, 99))
@settings(deadline=None)
def test_weights_are_cut_where_that_loses_no_more(transposed, bits, outlier, limit, seed):
    torch.manual_seed(seed)
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(3, 2, 2).requires_grad_(False)
    conv.weight[1, 1, 0, 0] = outlier
    x, layer = torch.randn(16, 3, 4, 4), QuantizedConv(copy.deepcopy(conv), bits=bits)
    ranged = ActivationQuantizer(bounds=(-limit, limit))
    before = lost(layer, conv, x, ranged.kept)
    layer.cut(x, ranged.kept)
    after = lost(layer, conv, x, ranged.kept)
    assert (after <= before + 1e-6).all()
    assert (layer.conv.weight.abs() <= conv.weight.abs()).all()


def test_a_weight_whose_output_is_beyond_the_range_makes_no_long_steps():
    """One pixel's weights are a hundred times as large as others', which all have its scale."""
    torch.manual_seed(0)
    decoder = nn.ConvTranspose2d(8, 1, 4, bias=False).requires_grad_(False)
    decoder.weight[:, 0, 0, 0] = 100.0
    x, layer = torch.rand(64, 8, 1, 1), QuantizedConv(copy.deepcopy(decoder))
    kept = ActivationQuantizer(bounds=(-20.0, 20.0)).kept
    before = lost(layer, decoder, x, kept)
    layer.cut(x, kept)
    after = lost(layer, decoder, x, kept)
    assert after < before / 20


def test_learned_ranges_have_the_gradient_of_finite_differences():
    """What is beyond the range becomes its end, and moves with it alone."""
    quantizer = ActivationQuantizer(bounds=None).double().train()
    quantizer(torch.tensor([-1.0, 2.0], dtype=torch.float64))
    quantizer.learn()
    x = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    quantizer(x).sum().backward()
    assert float(quantizer.high.grad) == pytest.approx(1)
    assert float(quantizer.low.grad) == pytest.approx(1)
    assert {name for name, _ in quantizer.named_parameters()} == {"low", "high"}


@pytest.mark.parametrize("model", MODELS)
def test_every_convolution_is_quantised_and_the_integers_compute_the_same(model, images):
    vae = having_seen(Quantize()(MODELS[model]((1, 16, 16))), images)
    x = images[:8].float() / 255
    for net, inputs in ((vae.encoder, x), (vae.decoder, vae.encode(x))):
        assert not [n for n, m in net.named_modules() if isinstance(m, CONVOLUTIONS) and not n.endswith(".conv")]
        integers = as_integers(net)
        round_biases(net)  # as integers are
        assert not any(isinstance(module, (QuantizedConv, ActivationQuantizer)) for module in integers.modules())
        torch.testing.assert_close(integers(inputs), net(inputs), rtol=0, atol=1e-5)
        exact = as_floats(net)
        difference = (
            (torch.cat([*map(torch.ravel, listed(exact(inputs)))]) - torch.cat([*map(torch.ravel, listed(net(inputs)))]))
            .abs()
            .max()
        )
        assert 0 < difference < 1.0


def listed(value):
    return value if isinstance(value, tuple) else (value,)


@given(st.floats(-3, 0), st.floats(0.01, 5))
@settings(max_examples=40, deadline=None)
def test_rounding_is_to_the_nearest_level_and_keeps_zero(low, high):
    quantizer = ActivationQuantizer(bounds=(low, high)).eval()
    scale, zero_point = quantizer.qparams()
    x = torch.linspace(low, high, 501)
    inside = (x > low + scale) & (x < high - scale)
    assert ((quantizer(x) - x).abs()[inside] <= scale / 2 + 1e-6).all()
    assert quantizer(torch.zeros(1)) == 0
    assert float(zero_point).is_integer()
    assert len(torch.unique(quantizer(x))) <= 256


def test_a_range_stays_within_its_limit():
    quantizer = ActivationQuantizer(limit=10.0).train()
    quantizer(torch.tensor([-30.0, 4.0]))
    assert (float(quantizer.low), float(quantizer.high)) == (-10.0, 4.0)
    assert quantizer.eval()(torch.tensor(-30.0)) == pytest.approx(-10, abs=0.03)


def test_only_the_output_of_a_decoder_is_limited_also_when_read_back(tmp_path):
    model = Quantize()(MVAE((1, 8, 8), 4))
    save_model(tmp_path / "model.safetensors", model)
    for vae in (model, load_model(tmp_path / "model.safetensors")):
        limits = [m.limit for m in vae.modules() if isinstance(m, ActivationQuantizer)]
        assert [limit < torch.inf for limit in limits] == [False] * (len(limits) - 1) + [True]


def test_gradients_pass_straight_through_inside_the_range_only():
    quantizer = ActivationQuantizer(bounds=(0.0, 1.0)).eval()
    x = torch.tensor([-1.0, 0.3, 2.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    conv = QuantizedConv(nn.Conv2d(1, 2, 3))
    conv(torch.rand(1, 1, 3, 3)).sum().backward()
    assert (conv.conv.weight.grad != 0).all()
