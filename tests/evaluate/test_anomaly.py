"""Scores against their definition, and areas against counting pairs."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import VAE, evaluate, fit
from pyro_mvae.data import shown
from tests.catalog import MODELS
from tests.evaluate.test_measures import stripes


@pytest.mark.parametrize("name", MODELS)
def test_a_score_is_the_distortion_at_the_mean_and_has_no_noise(name):
    torch.manual_seed(0)
    model, images = MODELS[name]((1, 16, 16)).train(), stripes(6).images
    scores = evaluate.anomaly_scores(model, images, binarization="dynamic", seed=3, chunk=4)
    assert model.training
    torch.manual_seed(1)
    x = shown(images, binarization="dynamic", seed=3)
    model.eval()
    torch.testing.assert_close(scores, -model.conditional(model.encode(x)).log_prob(x).detach())


def test_the_area_is_the_share_of_pairs_and_rises_with_training():
    """Noise is unlike stripes; the same stripes are not. A model that learned nothing can't tell."""
    normal, noise = stripes(100, seed=1).images, torch.randint(0, 256, (50, 1, 16, 16)).byte()
    torch.manual_seed(0)
    vae = VAE((1, 16, 16), 4, net="mlp", hidden=32)
    fit(vae, stripes(400).images, epochs=20, batch_size=40)
    found = evaluate.anomaly_auc(vae, normal, noise)
    a, b = (evaluate.anomaly_scores(vae, images) for images in (normal, noise))
    assert found.value == pytest.approx(float((b[:, None] > a).float().mean()))
    assert found.value > 0.99
    assert 0.4 < evaluate.anomaly_auc(vae, normal, stripes(100, seed=2).images).value < 0.6
    assert evaluate.anomaly_auc(vae, noise, normal).value == pytest.approx(1 - found.value)
