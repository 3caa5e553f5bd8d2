"""Channels and dimensions of the code that are taken away, and which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyro_mvae import VAE
from pyro_mvae.compress import PruneChannels, PruneLatents, Shrink
from pyro_mvae.compress.prune import channels, inner_channels, kept_channels, layers_of, output_layers, prune, tied
from pyro_mvae.nets.fold import CONVOLUTIONS
from tests.catalog import MODELS
from tests.seen import having_seen


@given(st.sampled_from(sorted(MODELS)), st.floats(0, 0.95), st.integers(1, 8), st.sampled_from([(1, 16, 16), (3, 9, 21)]))
@settings(max_examples=20, deadline=None)
def test_pruning_keeps_what_was_asked_for(model, ratio, round_to, shape):
    original = MODELS[model](shape)
    small = PruneChannels(ratio=ratio, round_to=round_to)(original).eval()
    for part in ("encoder", "decoder"):
        names = [name for name, layer in getattr(original, part).named_modules() if isinstance(layer, CONVOLUTIONS)]
        outputs = output_layers(getattr(original, part))
        for name in names:
            before = getattr(original, part).get_submodule(name).out_channels
            after = getattr(small, part).get_submodule(name).out_channels
            assert after == (before if name in outputs else kept_channels(before, ratio=ratio, round_to=round_to))
    x = torch.zeros(2, *shape)
    assert small.encode(x).shape == (2, small.latent_dim)
    assert small.decode(small.encode(x)).shape == x.shape


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


@given(
    st.sampled_from(["conv", "mobile", "mlp"]),
    st.lists(st.integers(2, 40), min_size=1, max_size=3),
    st.floats(0, 0.9),
    st.sampled_from([1, 4, 8]),
)
@settings(max_examples=25, deadline=None)
def test_a_global_ratio_is_that_of_all_channels_together_or_an_error(net, widths, ratio, round_to):
    """Rounding each layer by itself may add up: the number that comes nearest after rounding is what goes."""
    model = VAE((1, 16, 16), 4, net=net, widths=widths, hidden=24)
    try:
        small = PruneChannels(ratio, round_to=round_to, importance="group_l1", scope="global")(model)
    except ValueError as error:
        if "channels can go, where ratio" not in str(error):
            raise
        return
    before, after = inner_channels(model), inner_channels(small)
    for part, (own, example) in model.deployable().items():
        outputs = output_layers(own)
        layers = layers_of(own)
        groups = [{f"{part}.{name}" for name in names} for _, names in tied(own, example, layers, outputs)]
        sums = [sum(each[min(names)] for names in groups) for each in (before, after)]
        assert abs(sums[1] - (1 - ratio) * sums[0]) <= max(0.05 * sums[0], round_to / 2)


def test_a_global_ratio_that_rounding_leaves_no_room_for_is_refused():
    with pytest.raises(ValueError, match=r"^0 of 12 channels can go, where ratio 0\.5 asks for 6"):
        PruneChannels(0.5, scope="global")(VAE((1, 16, 16), 4, widths=(4, 4), hidden=4))


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
