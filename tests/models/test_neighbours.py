"""Clusters of pictures that are joined through their nearest neighbours."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import GMVAE, Objective, VaDE, fit
from pyro_mvae.evaluate.latents import agreement, assigned
from pyro_mvae.models.moved import moved, upright
from pyro_mvae.models.neighbours import Reader, labelled, neighbourhoods
from pyro_mvae.models.vae import codes

SMALL = {"widths": (4,), "hidden": 8}


def stripes(n):
    """Pictures of three kinds: a bright stripe in one of three places, with noise; and their kinds."""
    torch.manual_seed(0)
    images, kinds = torch.randint(0, 60, (n, 1, 16, 16), dtype=torch.uint8), torch.arange(n) % 3
    for image, kind in zip(images, kinds, strict=True):
        image[0, 5 * kind : 5 * kind + 5] = 255
    return images, kinds


def test_neighbourhoods_are_kinds_of_pictures_and_the_same_for_a_seed():
    images, kinds = stripes(90)
    found = neighbourhoods(images, 3)
    assert agreement(found.numpy(), kinds.numpy()) == 1.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(found, neighbourhoods(images, 3))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    with pytest.raises(ValueError, match="there are 4 images, expected 5 or more for 5 clusters"):
        neighbourhoods(images[:4], 5)


def test_upright_pictures_are_in_the_middle_and_lean_to_neither_side():
    """The moments are measured here, by the definition, on a bar that leans and stands aside; on black and on white alike."""
    bar = torch.zeros(2, 3, 21, 31)
    for row in range(4, 15):
        bar[..., row, 8 + row // 2 : 11 + row // 2] = 0.8
    bar[1] = 1 - bar[1]
    rows, columns = torch.arange(21.0) - 10, torch.arange(31.0) - 15

    def moments(x):
        mass = (x[:, 0] - x[:, :1].flatten(1).median(1).values[:, None, None]).abs()
        mass = mass / mass.sum((1, 2), keepdim=True)
        r, c = (mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)
        return r, c, torch.einsum("nhw,nh,nw->n", mass, rows - r[:, None], columns - c[:, None])

    before, after = moments(bar), moments(upright(bar))
    assert min(float(moment.abs().min()) for moment in before) > 0.9
    assert max(float(moment.abs().max()) for moment in after) < 0.15
    plain = torch.full((1, 1, 8, 8), 0.5)
    torch.testing.assert_close(upright(plain), plain)


@pytest.mark.parametrize("kind", [VaDE, GMVAE])
def test_a_start_from_neighbours_gives_each_cluster_codes_of_its_own(kind):
    images, kinds = stripes(90)
    vae = kind((1, 16, 16), 4, num_clusters=3, **SMALL)
    vae.initialize(images, fit=fit, start="neighbours", epochs=30, batch_size=30, lr=1e-2)
    assert agreement(assigned(vae, images), kinds.numpy()) > 0.9
    z = codes(vae, images)
    loc = vae.mixture.loc if kind is VaDE else vae.components.loc.bias.unflatten(0, (3, 4))
    assert ((loc > z.min(0).values - 1e-4) & (loc < z.max(0).values + 1e-4)).all()
    with pytest.raises(ValueError, match="expected one of: autoencoder, neighbours"):
        vae.initialize(images, fit=fit, start="labels")
    for start in ("autoencoder", "neighbours"):
        with pytest.raises(ValueError, match=r"expected images of shape \(n, 1, 16, 16\), got \(1, 1, 8, 16\)"):
            vae.initialize(images[:, :, :8], fit=fit, start=start)


def test_a_reader_is_trained_on_the_clusters_written_beside_pictures():
    """−log p(y|x) of the logits of the moved picture, and it learns to read what is written, right or wrong."""
    images, kinds = stripes(60)
    wrong = (kinds + 1) % 3
    reader = Reader(VaDE((1, 16, 16), 4, **SMALL), 3)
    x = labelled(images, wrong, 3)
    found = Objective(reader)
    torch.manual_seed(0)
    loss = found(x.float() / 255)["loss"]
    torch.manual_seed(0)
    by_hand = torch.nn.functional.cross_entropy(reader.logits(moved(images.float() / 255)), wrong)
    torch.testing.assert_close(loss, by_hand)
    fit(reader, x, epochs=30, batch_size=20, lr=1e-2)
    assert float((reader.read(images) == wrong).float().mean()) > 0.8
    with pytest.raises(ValueError, match="num_clusters is 300, expected 256 at most"):
        labelled(images, wrong, 300)
