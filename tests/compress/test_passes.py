from __future__ import annotations

import copy

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_mvae import MVAE, VAE, Objective, fit, load_model, save_model
from pyro_mvae.compress import FoldAndFuse, Palettize, PruneChannels, PruneLatents, Quantize, Shrink, SparseCode
from pyro_mvae.compress.fold import remove_dead
from pyro_mvae.compress.prune import channels, kept_channels, prune
from pyro_mvae.evaluate.cost import num_macs
from pyro_mvae.inference.asvi import negative_bound
from pyro_mvae.nets.fold import CONVOLUTIONS, fold_batch_norm
from pyro_mvae.nets.palette import PalettizedConv, clustered
from pyro_mvae.nets.quantized import (
    ActivationQuantizer,
    QuantizedConv,
    as_floats,
    as_integers,
    check_calibrated,
    quantized,
    round_biases,
)
from tests.catalog import BOUNDS, MODELS, PASSES, REFUSED

CASES = [(model, name) for model in MODELS for name in PASSES if (model, name) not in REFUSED]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_the_contract(model, name, images, tmp_path):
    """A pass copies, is logged by its repr, and leaves a model that trains, by `fit` and by SVI, and is saved and read."""
    original = MODELS[model]((1, 16, 16))
    before = copy.deepcopy(original.state_dict())
    small = PASSES[name](original, images[:64])
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


@pytest.mark.parametrize(("model", "name"), sorted(REFUSED))
def test_a_pass_that_a_model_cannot_go_through_says_why(model, name):
    with pytest.raises(ValueError, match=r"prune its codes"):
        PASSES[name](MODELS[model]((1, 16, 16)))


SMALLER = {
    "prune": PruneChannels(ratio=0.3, round_to=1),
    "rank": PruneChannels(ratio=0.3, round_to=2, importance="group_l1", scope="global"),
    "latents": PruneLatents(keep=2),
    "fold": FoldAndFuse(),
    "sparse": SparseCode(0.05),
}


@given(
    st.sampled_from(["conv", "mobile", "mlp"]),
    st.lists(st.integers(2, 9), min_size=1, max_size=3),
    st.integers(3, 12),
    st.tuples(st.sampled_from([1, 3]), st.integers(8, 24), st.integers(8, 24)),
    st.integers(2, 6),
    st.permutations(sorted(SMALLER)).flatmap(lambda names: st.integers(0, len(names)).map(lambda n: names[:n])),
    st.sampled_from([None, Quantize(), Quantize(weight_bits=4), Quantize(ranges="learned")]),
)
@settings(max_examples=40, deadline=None)
def test_any_passes_in_any_order(tmp_path_factory, net, widths, hidden, shape, latent_dim, names, last):
    """They are logged, the nets still fit each other, and what is read back computes the same."""
    vae = VAE(shape, latent_dim, net=net, widths=widths, hidden=hidden)
    seen = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    passes = [*(SMALLER[name] for name in names), *([last] if last else [])]
    for step in passes:
        vae = step(vae, seen)
    assert vae.passes == tuple(map(repr, passes))
    if "latents" in names:
        assert vae.latent_dim == 2
    x = seen[:2].float() / 255
    assert torch.isfinite(Objective(vae.train())(x)["loss"])
    vae.eval()
    path = tmp_path_factory.mktemp("passes") / "vae.safetensors"
    save_model(path, vae)
    assert torch.equal(load_model(path).decode(vae.encode(x)), vae.decode(vae.encode(x)))


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"VQVAE"}))
def test_dimensions_that_say_nothing_go_first(model, images):
    """What is left is the model with the other dimensions of its code at 0."""
    vae = having_seen(MODELS[model]((1, 16, 16)), images)
    vae.encoder.heads.loc.weight.data[1] *= 1e-4
    small, x = PruneLatents(keep=3)(vae, images).eval(), images[:4].float() / 255
    assert small.latent_dim == small.config["latent_dim"] == 3
    assert small.prior(5).sample().shape == (5, 3)
    if model == "SVAE":
        return  # its codes are brought back to length 1
    torch.testing.assert_close(small.encode(x), vae.encode(x)[:, [0, 2, 3]])
    z = torch.randn(4, 4)
    z[:, 1] = 0
    torch.testing.assert_close(small.decode(z[:, [0, 2, 3]]), vae.decode(z), atol=1e-5, rtol=1e-4)


def test_codes_of_a_vq_vae_that_are_not_used_are_removed_and_its_pictures_stay(images):
    vae = having_seen(MODELS["VQVAE"]((1, 16, 16)), images)
    used = vae.latent_activity(images) > 0
    small, x = PruneLatents(threshold=0.0)(vae, images).eval(), images[:8].float() / 255
    assert small.config["num_codes"] == len(small.codebook.vectors) == int(used.sum())
    torch.testing.assert_close(small.decode(small.encode(x)), vae.decode(vae.encode(x)))
    assert small.generate(2).shape == (2, 1, 16, 16)
    assert torch.isfinite(small.prior(8).log_prob(small.encode(x))).all()


def test_a_small_code_is_as_large_as_images_need(images):
    vae = having_seen(VAE((1, 16, 16), 6, widths=(8,), hidden=16), images)
    vae.encoder.heads.loc.weight.data *= torch.tensor([0.0, 9.0, 0.0, 9.0, 9.0, 0.0])[:, None, None, None]
    assert PruneLatents()(vae, images).latent_dim == Shrink()(vae, images).latent_dim == 3


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "bn_scale", "group_l1"])
def test_each_importance_finds_the_channels_that_matter(importance, images):
    """Channels whose every trace was made small go, and the picture stays."""
    vae = having_seen(VAE((1, 16, 16), 4, widths=(8, 12), hidden=16), images)
    first = vae.encoder.body[0]
    gone = [0, 3, 4, 6]
    first[0].weight.data[gone] *= 1e-4
    for tensor in (first[1].weight, first[1].bias, vae.encoder.body[1][0].weight.transpose(0, 1)):
        tensor.data[gone] *= 1e-4
    small = PruneChannels(ratio=0.5, round_to=1, importance=importance)(vae, images)
    kept = [place for place in range(8) if place not in gone]
    assert torch.equal(small.encoder.body[0][0].weight, first[0].weight[kept])


def test_a_global_ratio_takes_most_from_the_layers_that_matter_least(images):
    vae = VAE((1, 16, 16), 4, widths=(16, 16), hidden=32)
    vae.encoder.body[1][0].weight.data *= 1e-3
    vae.encoder.body[2][0].weight.data.transpose(0, 1)[...] *= 1e-3
    before, after = channels(vae), channels(PruneChannels(ratio=0.3, round_to=1, importance="group_l1", scope="global")(vae))
    share = {name: after[name] / before[name] for name in before}
    assert share["encoder.body.1.0"] < share["encoder.body.0.0"]
    inner = [name for name in before if name.startswith("encoder.body")]
    assert sum(after[name] for name in inner) / sum(before[name] for name in inner) == pytest.approx(0.7, abs=0.02)


def test_channels_that_are_always_0_are_removed_and_the_function_stays(images):
    for net in ("conv", "mobile", "mlp"):
        vae = having_seen(VAE((1, 16, 16), 4, net=net, widths=(8, 12), hidden=16, theta="weights"), images)
        vae = FoldAndFuse()(vae).eval()
        for part in (vae.encoder, vae.decoder):
            inner = [layer for layer in part.modules() if isinstance(layer, CONVOLUTIONS)][:-2]
            for layer in inner:
                layer.weight.data.transpose(0, 1 if layer.transposed else 0)[1:3] = 0
                layer.bias.data[1:3] = -0.5
        small, x, z = FoldAndFuse()(vae).eval(), images[:4].float() / 255, torch.randn(4, 4)
        assert sum(channels(small).values()) < sum(channels(vae).values())
        torch.testing.assert_close(small.encoder(x), vae.encoder(x), atol=1e-5, rtol=1e-5)
        theta = torch.randn(4, vae.theta.size)
        torch.testing.assert_close(
            small.theta.decode(small.decoder, z, theta), vae.theta.decode(vae.decoder, z, theta), atol=1e-5, rtol=1e-5
        )


def test_a_channel_that_is_0_stays_where_it_is_added_to_one_that_is_not():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = (nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1))
            self.first, self.second = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            return self.head(self.first(self.one(x)) + self.second(self.two(x)))

    net, x = Sum().eval(), torch.rand(2, 1, 4, 4)
    net.one.weight.data[1], net.one.bias.data[1] = 0, -1
    before = net(x)
    remove_dead(net, x[:1])
    torch.testing.assert_close(net(x), before)
    assert net.head.in_channels == 3


def test_quantising_after_training_is_ready_at_once(images):
    vae = VAE((1, 16, 16), 4, widths=(8, 12), hidden=16)
    fit(vae, images, epochs=8, lr=4e-3)
    before = negative_bound(vae, images)
    quantized = {bits: Quantize(weight_bits=bits)(vae, images).eval() for bits in (2, 4, 8)}
    assert abs(negative_bound(quantized[8], images) - before) < 0.02 * before
    z = torch.randn(64, 4)
    errors = {bits: float((small.decode(z) - vae.decode(z)).square().mean().detach()) for bits, small in quantized.items()}
    assert errors[8] < errors[4] < errors[2]


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


def test_weights_of_few_bits_have_few_levels_in_the_integers_too():
    conv = nn.Conv2d(3, 5, 3)
    for bits in (2, 4, 8):
        levels = QuantizedConv(conv, bits=bits).integers()
        assert int(levels.abs().max()) == 2 ** (bits - 1) - 1
    with pytest.raises(ValueError, match="can't have 9 bits"):
        QuantizedConv(conv, bits=9)


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


def test_pruning_takes_the_smallest_channels():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
    for layer in (net[0].weight, net[2].weight.transpose(0, 1)):
        layer.data.fill_(1.0)
        layer.data[[0, 2]] = 1e-4
    prune(net, torch.zeros(1, 1, 4, 4), PruneChannels(ratio=0.5, round_to=1))
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
        prune(Tied().eval(), torch.zeros(1, 8, 4, 4), PruneChannels(ratio=0.5, round_to=1))


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


def test_mistakes_are_explained():
    vae = MODELS["MVAE"]((1, 16, 16))
    with pytest.raises(ValueError, match="ratio is 1"):
        PruneChannels(ratio=1.0)
    with pytest.raises(ValueError, match="do so first, then quantise"):
        PruneChannels(ratio=0.5)(Quantize()(vae))
    with pytest.raises(ValueError, match="already"):
        Quantize()(Quantize()(vae))
    with pytest.raises(ValueError, match="seen no data"):
        check_calibrated(Quantize()(vae))
    with pytest.raises(ValueError, match="looks at images: call it with"):
        PruneChannels(importance="taylor")(vae)
    with pytest.raises(ValueError, match="looks at images: call it with"):
        PruneLatents()(vae)
    with pytest.raises(ValueError, match="looks at images: call it with"):
        Quantize(ranges="learned")(vae)
    with pytest.raises(ValueError, match="keep is 9, expected 4 at most"):
        PruneLatents(keep=9)(vae, torch.zeros(4, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no batch normalisation"):
        PruneChannels(importance="bn_scale")(MODELS["InfoVAE"]((1, 16, 16)))
    with pytest.raises(ValueError, match="sparse already"):
        SparseCode()(SparseCode()(vae))
    with pytest.raises(ValueError, match="shrink it first"):
        Shrink()(PruneChannels()(vae))
    with pytest.raises(ValueError, match="shrink it first"):
        Shrink()(SparseCode()(vae))
    with pytest.raises(ValueError, match="layers is 5, expected 2 at most"):
        Shrink(layers=5)(vae)
    with pytest.raises(ValueError, match="expected 2 or more: a sphere"):
        PruneLatents(keep=1)(MODELS["SVAE"]((1, 16, 16)), torch.zeros(4, 1, 16, 16, dtype=torch.uint8))
    for wrong in (
        lambda: PruneChannels(importance="luck"),
        lambda: PruneChannels(scope="net"),
        lambda: PruneLatents(keep=0),
        lambda: Quantize(weight_bits=1),
        lambda: Quantize(ranges="fixed"),
        lambda: SparseCode(0.0),
        lambda: Shrink(width=0.0),
        lambda: Shrink(latent_dim=0),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
    with pytest.raises(ValueError, match="linear"):
        quantized(nn.Sequential(nn.Linear(2, 2)))
