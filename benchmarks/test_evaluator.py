"""The likelihood of test images: how long `negative_log_likelihood` takes, and pythae's evaluator, which goes image by image.

pip install pythae && pytest benchmarks/ -k evaluator
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.interleave import one_core
from pyro_mvae import VAE, load_data, negative_log_likelihood
from pyro_mvae.nets.conv import swift

NUM_IMAGES, NUM_SAMPLES, ROUNDS = 200, 200, 3


def as_pythae(vae: VAE) -> Any:
    """The same nets, as fast, as a model of pythae's, which wants a logarithm of the variance and pictures of probabilities."""
    models, nets, outputs = (pytest.importorskip(f"pythae.models{part}") for part in ("", ".nn", ".base.base_utils"))

    class Encoder(nets.BaseEncoder):
        def __init__(self, net: nn.Module):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            loc, scale = self.net(x)
            return outputs.ModelOutput(embedding=loc, log_covariance=2 * scale.log())

    class Decoder(nets.BaseDecoder):
        def __init__(self, net: nn.Module):
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Any:
            return outputs.ModelOutput(reconstruction=self.net(z).sigmoid())

    config = models.VAEConfig(input_dim=vae.image_shape, latent_dim=vae.latent_dim, reconstruction_loss="bce")
    theirs = models.VAE(config, encoder=Encoder(vae.encoder), decoder=Decoder(vae.decoder)).eval()
    return swift(copy.deepcopy(theirs))


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_evaluator(net, record):
    """Seconds of both for the same nets, images and number of samples, in turns on one core; their estimates must agree."""
    torch.manual_seed(0)
    vae = VAE((1, 28, 28), 16, net=net).eval()
    theirs, images = as_pythae(vae), load_data("digits").test.images[:NUM_IMAGES]
    images = (images > 127).to(torch.uint8) * 255
    x = images.float() / 255
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: negative_log_likelihood(vae, images, num_samples=NUM_SAMPLES).nats,
        "pythae": lambda: -float(theirs.get_nll(x, n_samples=NUM_SAMPLES, batch_size=NUM_SAMPLES)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    nats: dict[str, float] = {}
    with one_core(), torch.no_grad():
        for _ in range(ROUNDS):
            for name, run in runs.items():
                begun = time.perf_counter()
                nats[name] = run()
                seconds[name].append(time.perf_counter() - begun)
    assert abs(nats["ours"] / nats["pythae"] - 1) < 0.002
    medians = {name: round(statistics.median(some), 3) for name, some in seconds.items()}
    about = {"num_images": NUM_IMAGES, "num_samples": NUM_SAMPLES, "net": net}
    shown = {name: round(value, 2) for name, value in nats.items()}
    ratio = round(medians["pythae"] / medians["ours"], 2)
    record(f"evaluator-{net}", {**about, "seconds": medians, "ratio": ratio, "nll": shown})
