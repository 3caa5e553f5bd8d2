"""Batch normalisation folded, dead channels removed: the function stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_mvae import VAE
from pyro_mvae.compress import FoldAndFuse
from pyro_mvae.compress.fold import remove_dead
from pyro_mvae.compress.prune import channels
from pyro_mvae.nets.fold import CONVOLUTIONS, fold_batch_norm
from tests.catalog import MODELS
from tests.seen import having_seen


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


class Skip(nn.Module):
    """A map that goes around a depthwise layer as well."""

    def __init__(self):
        super().__init__()
        self.one, self.deep, self.head = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 2, 1),
        )
        self.first, self.second = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        h = self.first(self.one(x))
        return self.head(h + self.second(self.deep(h)))


LOOKED_AT = {
    "normalised": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)),
    "normalised in groups": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)),
    "shuffled": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 2, 1)),
    "in groups": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1, groups=2), nn.ReLU(), nn.Conv2d(16, 2, 1)
    ),
    "multiplied": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1, groups=8), nn.ReLU(), nn.Conv2d(16, 2, 1)
    ),
    "skipped": Skip,
}


@pytest.mark.parametrize("net", LOOKED_AT.values(), ids=LOOKED_AT)
@pytest.mark.parametrize("dead", [[1], [0, 1, 2, 3]])
def test_a_channel_that_is_0_stays_where_more_than_convolutions_look_at_it(net, dead):
    torch.manual_seed(0)
    net, x = net().eval(), torch.rand(3, 1, 8, 8)
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    first.weight.data[dead], first.bias.data[dead] = 0, -1
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.bias.data += 0.5
    before = net(x)
    remove_dead(net, x[:1])
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("model", MODELS)
def test_folding_is_exact(model, images):
    vae = having_seen(MODELS[model]((1, 16, 16)), images)
    folded = fold_batch_norm(vae.encoder)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    x = images[:4].float() / 255
    torch.testing.assert_close(folded(x), vae.encoder(x), rtol=1e-5, atol=1e-5)
    z = torch.randn(4, vae.latent_dim)
    torch.testing.assert_close(fold_batch_norm(vae.decoder)(z), vae.decoder(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(("before", "after", "groups"), [(8, 8, 1), (8, 8, 8), (8, 4, 4), (4, 12, 2), (6, 6, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_folding_is_exact_with_groups(kind, before, after, groups, affine):
    torch.manual_seed(0)
    net = nn.Sequential(kind(before, after, 3, groups=groups, bias=affine), nn.BatchNorm2d(after, affine=affine))
    if affine:
        nn.init.uniform_(net[1].weight, 0.5, 2.0)
        nn.init.normal_(net[1].bias)
    for _ in range(3):
        net(torch.randn(16, before, 6, 6) * 3 + 1)
    folded, x = fold_batch_norm(net.eval()), torch.randn(2, before, 6, 6)
    assert isinstance(folded[1], nn.Identity)
    assert folded[0].weight.shape == net[0].weight.shape
    torch.testing.assert_close(folded(x), net(x), rtol=1e-5, atol=1e-5)


def test_a_normalisation_without_statistics_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="keeps no running statistics"):
        fold_batch_norm(net)
