from __future__ import annotations

import copy

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_mvae import MVAE, PruneChannels, Quantize, fit, load_model, save_model
from pyro_mvae.compress.miniaturize import BudgetError, calibrated, estimated_bytes, miniaturize, ratio_within, student_for
from pyro_mvae.compress.passes import kept_channels, prune
from pyro_mvae.data import Data, Split
from pyro_mvae.nets.fold import CONVOLUTIONS, fold_batch_norm
from pyro_mvae.nets.quantized import ActivationQuantizer, QuantizedConv, as_floats, as_integers, check_calibrated, quantized
from tests.catalog import BOUNDS, MODELS, PASSES

CASES = [(model, name) for model in MODELS for name in PASSES]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_the_contract(model, name, images, tmp_path):
    """A pass copies, is logged by its repr, and leaves a model that trains, by `fit` and by SVI, and is saved and read."""
    original = MODELS[model]((1, 16, 16))
    before = copy.deepcopy(original.state_dict())
    small = PASSES[name](original)
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert original.passes == ()
    assert small.passes == (repr(PASSES[name]),)
    assert eval(small.passes[0]) == PASSES[name]  # its repr rebuilds it

    fitted = copy.deepcopy(dict(small.named_parameters()))
    fit(small, images[:64], epochs=1)
    assert all(not torch.equal(value, fitted[key]) for key, value in small.named_parameters())
    x = images[:8].float() / 255
    SVI(small.model, small.guide, pyro.optim.Adam({"lr": 1e-3}), BOUNDS.get(model, Trace_ELBO)()).step(x)

    small.eval()
    save_model(tmp_path / "small.safetensors", small)
    loaded = load_model(tmp_path / "small.safetensors")
    assert loaded.passes == small.passes
    assert torch.equal(loaded.decode(loaded.encode(x)), small.decode(small.encode(x)))


@given(st.sampled_from(sorted(MODELS)), st.floats(0, 0.95), st.integers(1, 8), st.sampled_from([(1, 16, 16), (3, 9, 21)]))
@settings(max_examples=20, deadline=None)
def test_pruning_keeps_what_was_asked_for(model, ratio, round_to, shape):
    original = MODELS[model](shape)
    small = PruneChannels(ratio=ratio, round_to=round_to)(original).eval()
    for part in ("encoder", "decoder"):
        names = [name for name, layer in getattr(original, part).named_modules() if isinstance(layer, CONVOLUTIONS)]
        for name in names:
            before = getattr(original, part).get_submodule(name).out_channels
            after = getattr(small, part).get_submodule(name).out_channels
            assert after in (before, kept_channels(before, ratio=ratio, round_to=round_to))
    x = torch.zeros(2, *shape)
    assert small.encode(x).shape == (2, small.latent_dim)
    assert small.decode(small.encode(x)).shape == x.shape


def test_pruning_takes_the_smallest_channels():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
    for layer in (net[0].weight, net[2].weight.transpose(0, 1)):
        layer.data.fill_(1.0)
        layer.data[[0, 2]] = 1e-4
    prune(net, torch.zeros(1, 1, 4, 4), ratio=0.5, round_to=1)
    assert (net[0].out_channels, net[2].in_channels) == (2, 2)
    assert net[0].weight.min() == 1


def test_a_net_that_cannot_be_pruned_is_refused():
    class Tied(nn.Module):
        """Its hidden channels are added to the input, which nobody may prune."""

        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.head(self.inner(x) + x)

    with pytest.raises(ValueError, match="tied to its input's"):
        prune(Tied().eval(), torch.zeros(1, 8, 4, 4), ratio=0.5, round_to=1)


@torch.no_grad()
def having_seen(vae, images):
    """Its running statistics and ranges are of images; its weights are as they were."""
    vae.train().decode(vae.encode(images[:64].float() / 255))
    return vae.eval()


@pytest.mark.parametrize("model", MODELS)
def test_folding_is_exact(model, images):
    vae = having_seen(MODELS[model]((1, 16, 16)), images)
    folded = fold_batch_norm(vae.encoder)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    x = images[:4].float() / 255
    torch.testing.assert_close(folded(x), vae.encoder(x), rtol=1e-4, atol=1e-5)
    z = torch.randn(4, vae.latent_dim)
    torch.testing.assert_close(fold_batch_norm(vae.decoder)(z), vae.decoder(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_every_convolution_is_quantised_and_the_integers_compute_the_same(model, images):
    vae = having_seen(Quantize()(MODELS[model]((1, 16, 16))), images)
    x = images[:8].float() / 255
    for net, inputs in ((vae.encoder, x), (vae.decoder, vae.encode(x))):
        assert not [n for n, m in net.named_modules() if isinstance(m, CONVOLUTIONS) and not n.endswith(".conv")]
        integers = as_integers(net)
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


def test_mistakes_are_explained():
    vae = MODELS["MVAE"]((1, 16, 16))
    with pytest.raises(ValueError, match="ratio is 1"):
        PruneChannels(ratio=1.0)
    with pytest.raises(ValueError, match="prune first"):
        PruneChannels(ratio=0.5)(Quantize()(vae))
    with pytest.raises(ValueError, match="already"):
        Quantize()(Quantize()(vae))
    with pytest.raises(ValueError, match="seen no data"):
        check_calibrated(Quantize()(vae))
    with pytest.raises(ValueError, match="linear"):
        quantized(nn.Sequential(nn.Linear(2, 2)))


def bytes_of(model) -> int:
    return 3_000 + estimated_bytes(model)


def test_the_smallest_ratio_that_fits_is_taken():
    student = MODELS["MVAE"]((1, 16, 16))
    sizes = {ratio: bytes_of(Quantize()(PruneChannels(ratio=ratio)(student))) for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)}
    for ratio in (0.3, 0.7):
        found = ratio_within(student, budget_bytes=sizes[ratio], measure=bytes_of)
        assert found <= ratio
        assert bytes_of(Quantize()(PruneChannels(ratio=found)(student))) <= sizes[ratio]
    with pytest.raises(BudgetError, match=r"can't be met: the smallest student has") as error:
        ratio_within(student, budget_bytes=5_000, measure=bytes_of)
    assert error.value.smallest == sizes[0.9]


def test_the_student_grows_with_the_budget():
    teacher = MODELS["VAE"]((1, 16, 16))
    sizes = [estimated_bytes(student_for(teacher, budget_kb=budget)) for budget in (20, 50, 100)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_miniaturize_gives_a_fitted_int8_student(images, tmp_path):
    data = Data("squares", train=Split(images[:192]), test=Split(images[192:]), binarization="none")
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    before = copy.deepcopy(teacher.state_dict())
    arguments = {"budget_kb": 24, "student": MODELS["MVAE"]((1, 16, 16)), "epochs": 2, "measure": bytes_of, "folder": tmp_path}
    result = miniaturize(teacher, data, **arguments)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert [name.split("(")[0] for name in result.model.passes] == ["PruneChannels", "Quantize"]
    assert result.history["stage"].unique().tolist() == ["distil", "prune", "quantise"]
    assert bytes_of(result.model) <= 24_000
    again = miniaturize(teacher, data, **arguments, resume=True)
    for a, b in zip(result.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_calibrated_can_be_exported():
    check_calibrated(calibrated(Quantize()(MODELS["VAE"]((1, 16, 16)))))
