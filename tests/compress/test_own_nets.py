"""Passes on nets that are not this package's: what they can't follow they name, and nothing is skipped in silence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyro_mvae import VAE, export_executorch, export_onnx, fit, load_model, save_model
from pyro_mvae.compress import FoldAndFuse, PruneChannels, Quantize, SparseCode, prune_gradually
from pyro_mvae.compress.gradual import part_of
from pyro_mvae.compress.prune import channels, inner_channels
from pyro_mvae.nets import Branches
from pyro_mvae.nets.conv import Gather, Heads


def up(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)


def place() -> list[nn.Module]:
    return [nn.Unflatten(1, (4, 1, 1)), nn.ConvTranspose2d(4, 32, 4)]


class Reshaped(nn.Module):
    """Linear → reshape → transposed convolution."""

    def __init__(self):
        super().__init__()
        self.wide, self.rest = nn.Linear(4, 512), nn.Sequential(nn.ReLU(), up(32, 16), nn.ReLU(), up(16, 1))

    def forward(self, z):
        return self.rest(self.wide(z).reshape(z.shape[0], -1, 4, 4))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Sequential(*place(), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1)), up(16, 1)

    def forward(self, z):
        return self.last(nn.functional.pixel_shuffle(self.body(z), 2))


DECODERS = {
    "unflattened": lambda: nn.Sequential(
        nn.Linear(4, 512), nn.ReLU(), nn.Unflatten(1, (32, 4, 4)), up(32, 16), nn.ReLU(), up(16, 1)
    ),
    "reshaped": Reshaped,
    "shuffled": lambda: nn.Sequential(
        *place(), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), up(16, 1)
    ),
    "shuffled by a function": Shuffled,
    "group norm": lambda: nn.Sequential(
        *place(), nn.GroupNorm(4, 32), nn.ReLU(), up(32, 16), nn.GroupNorm(4, 16), nn.ReLU(), up(16, 1)
    ),
    "transposed": lambda: nn.Sequential(*place(), nn.ReLU(), up(32, 16), nn.ReLU(), up(16, 1)),
    "linear": lambda: nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 256), nn.Unflatten(1, (1, 16, 16))),
}


def with_decoder(name: str) -> VAE:
    torch.manual_seed(0)
    return VAE((1, 16, 16), 4, widths=(8, 16), hidden=32, decoder=DECODERS[name]())


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unflattened", "layer '0' kept 512 channels, 256 were asked for"),
        ("reshaped", "layer 'wide' kept 512 channels, 256 were asked for"),
        ("shuffled", "layer '4' is a PixelShuffle"),
        ("shuffled by a function", "there is a pixel_shuffle, which channels can't be pruned around"),
    ],
)
def test_what_cannot_be_pruned_is_named(name, message, scope):
    with pytest.raises(ValueError, match=message):
        PruneChannels(0.5, scope=scope)(with_decoder(name))


@pytest.mark.parametrize("name", ["group norm", "linear"])
def test_what_can_be_is_pruned_in_every_layer(name, images):
    before = with_decoder(name)
    small = PruneChannels(0.5)(before)
    counts = [[count for layer, count in channels(each).items() if "decoder" in layer] for each in (before, small)]
    assert [2 * count for count in counts[1][:-1]] == counts[0][:-1]
    assert counts[1][-1] == counts[0][-1]
    assert len(fit(small, images, epochs=1)) == 1


def test_channels_that_normalisation_groups_do_not_divide_are_named():
    model = with_decoder("group norm")
    model.decoder[2] = nn.GroupNorm(8, 32)
    with pytest.raises(ValueError, match="layer '1' kept 8 channels, 12 were asked for"):
        PruneChannels(0.6)(model)


@pytest.mark.parametrize(
    "made", [PruneChannels(0.5), Quantize(), FoldAndFuse(), SparseCode(0.1)], ids=lambda made: type(made).__name__
)
def test_a_model_with_own_nets_is_read_back_after_a_pass(made, images, tmp_path):
    small = made(with_decoder("transposed"), images).eval()
    save_model(tmp_path / "small.safetensors", small)
    read, x = load_model(tmp_path / "small.safetensors", into=with_decoder("transposed")), images[:4].float() / 255
    assert read.passes == small.passes
    assert torch.equal(read.encode(x), small.encode(x))
    assert torch.equal(read.decode(small.encode(x)), small.decode(small.encode(x)))
    again = load_model(tmp_path / "small.safetensors", into=small)
    assert torch.equal(again.encode(x), read.encode(x))
    other = VAE((1, 16, 16), 3, widths=(8, 16), hidden=32)
    with pytest.raises(ValueError, match="a model with latent_dim=4, the one given has 3"):
        load_model(tmp_path / "small.safetensors", into=other)


class Normalised(nn.Module):
    """What its second convolution looks at was not rounded, and goes beyond the range of pixels."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 16, 3), Gather(16, 16, 5)
        )
        self.heads = Heads(16, 4)

    def forward(self, x):
        return self.heads(self.body(x))


def test_ranges_inside_of_a_net_are_those_of_its_data(images):
    """Only what comes in is known to be pixels."""
    torch.manual_seed(0)
    vae = VAE((1, 16, 16), 4, widths=(8, 16), hidden=32, encoder=Normalised()).eval()
    vae.encoder.body[1].weight.data *= 5
    small, x = Quantize()(vae, images).eval(), images[:16].float() / 255
    with torch.no_grad():
        before, after = vae.encode(x), small.encode(x)
    assert (after - before).abs().mean().item() < 0.05 * before.std(0).mean().item()


class Encoder(nn.Module):
    """Branches, as one would train them."""

    def __init__(self, width: int, kernel: int, *, depthwise: bool):
        super().__init__()
        self.body = nn.Sequential(
            *(Branches(1, width, kernel, stride=2), nn.ReLU()),
            *(Branches(width, width, kernel, groups=width if depthwise else 1), nn.ReLU()),
            *(Gather(width, 16, 8), nn.ReLU()),
        )
        self.heads = Heads(16, 4)

    def forward(self, x):
        return self.heads(self.body(x))


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_branches_are_merged_exactly(few, many, kernel, stride, depthwise, alike):
    torch.manual_seed(0)
    groups = few if depthwise else 1
    layer = Branches(groups * few, groups * (few if alike else many), kernel, stride=stride, groups=groups)
    for norm in (layer.wide_norm, layer.narrow_norm, layer.input_norm):
        if norm is not None:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
    for _ in range(3):
        layer(torch.randn(8, groups * few, 9, 7))
    layer.eval()
    x = torch.randn(2, groups * few, 9, 7)
    torch.testing.assert_close(layer.merged()(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_model_with_branches_goes_to_a_phone_as_one_without(depthwise, images, tmp_path):
    torch.manual_seed(0)
    model = VAE((1, 16, 16), 4, widths=(8,), hidden=16, encoder=Encoder(8, 3, depthwise=depthwise))
    fit(model, images, epochs=1)
    folded = FoldAndFuse()(model)
    assert not any(isinstance(layer, Branches | nn.BatchNorm2d) for layer in folded.encoder.modules())
    x = images[:8].float() / 255
    torch.testing.assert_close(folded.encode(x), model.encode(x), rtol=1e-5, atol=1e-5)
    fit(folded, images, epochs=1)
    for export, name in ((export_executorch, "encoder.pte"), (export_onnx, "encoder.onnx")):
        assert export(model, tmp_path / name, part="encoder", images=images).max_abs_diff < 1e-4
    pruned = PruneChannels(0.5)(model)
    assert {count for layer, count in channels(pruned).items() if "encoder.body" in layer} == {4, 8}
    small = Quantize()(pruned, images)
    assert export_executorch(small, tmp_path / "small.pte", part="encoder", images=images).max_abs_diff < 1e-4


def test_an_even_kernel_has_no_centre():
    with pytest.raises(ValueError, match="kernel_size is 4, expected an odd number"):
        Branches(4, 4, 4)


def test_pruning_in_steps_reaches_the_share_and_asks_again_each_time(images):
    model = VAE((1, 16, 16), 4, widths=(16, 32), hidden=64)
    small, history = prune_gradually(model, images, PruneChannels(0.75, importance="taylor"), steps=2, epochs=2)
    assert channels(small)["encoder.body.0.0"] == 4
    assert len(small.passes) == 2
    assert "'encoder.body.0.0': 0.5" in small.passes[1]
    assert history["step"].tolist() == [0, 0, 1, 1]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert model.passes == ()
    with pytest.raises(ValueError, match="steps is 0"):
        prune_gradually(model, images, PruneChannels(0.5), steps=0)
    with pytest.raises(ValueError, match="expected one number, which all layers come to"):
        prune_gradually(model, images, PruneChannels({"encoder.body.0.0": 0.5}))


@given(
    st.sampled_from(["conv", "mobile", "mlp"]),
    st.lists(st.integers(3, 40), min_size=1, max_size=3),
    st.floats(0.05, 0.95),
    st.sampled_from([1, 4, 8]),
    st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_steps_end_where_one_would(net, widths, ratio, round_to, steps):
    """Whatever rounding leaves of a step: what a layer comes to is counted from what it had."""
    model = by_steps = VAE((1, 16, 16), 4, net=net, widths=widths, hidden=24)
    by = PruneChannels(ratio, round_to=round_to)
    before = inner_channels(model)
    for step in range(steps):
        some = part_of(by, before, inner_channels(by_steps), step=step, steps=steps)
        by_steps = some(by_steps) if some else by_steps
        assert all(now <= before[name] for name, now in inner_channels(by_steps).items())
    assert channels(by_steps) == channels(by(model))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_steps_train_and_count(scope, images):
    model = VAE((1, 16, 16), 4, widths=(12, 24), hidden=32)
    small, history = prune_gradually(model, images, PruneChannels(0.5, scope=scope), batch_size=128)
    left = [sum(inner_channels(each).values()) for each in (small, model)]
    assert 0.4 < left[0] / left[1] < 0.6
    assert len(history) == 4


def test_single_layers_are_pruned_and_what_is_tied_to_them():
    model = VAE((1, 16, 16), 4, net="mobile", widths=(16, 32), hidden=64)
    before = channels(model)
    small = PruneChannels({"encoder.body.0.0": 0.5, "decoder.body.0.0": 0.25})(model)
    after = channels(small)
    assert (after["encoder.body.0.0"], before["encoder.body.0.0"]) == (8, 16)
    changed = {name for name in before if after[name] != before[name]}
    assert {"encoder.body.0.0", "decoder.body.0.0"} <= changed
    assert all(after[name] * 4 == before[name] * (2 if name.startswith("encoder") else 3) for name in changed)
    assert len(changed) < len(before) / 2
    with pytest.raises(ValueError, match=r"no layer 'encoder\.body\.9' whose channels can be removed, expected one of: decoder"):
        PruneChannels({"encoder.body.9": 0.5})(model)
    depthwise = next(name for name in changed if name.startswith("encoder") and name != "encoder.body.0.0")
    with pytest.raises(ValueError, match="go together, expected one ratio for them"):
        PruneChannels({"encoder.body.0.0": 0.5, depthwise: 0.25})(model)
    with pytest.raises(ValueError, match=r"ratio of 'a' is 1\.5"):
        PruneChannels({"a": 1.5})
    with pytest.raises(ValueError, match="expected that of one layer or more"):
        PruneChannels({})
    with pytest.raises(ValueError, match=r"ratio is 0\.97, expected 0\.9 at most with the scope 'global'"):
        PruneChannels(0.97, scope="global", round_to=1)
