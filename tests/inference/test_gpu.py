"""What holds on the CPU holds on a GPU."""

import copy

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_mvae import compile_elbo, fit, negative_log_likelihood
from tests.catalog import MODELS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_fit(name, backend, images, tmp_path):
    torch.manual_seed(0)
    vae = MODELS[name]((1, 16, 16)).cuda()
    twin, state = copy.deepcopy(vae), tmp_path / "state.safetensors"
    how = {"epochs": 4, "batch_size": 32, "compile": backend, "ema": 0.9, "test": images[128:]}
    history = fit(vae, images[:128], **how)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert next(vae.parameters()).is_cuda
    fit(twin, images[:128], **how, checkpoint=state)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    assert negative_log_likelihood(vae, images[128:], num_samples=5).nats > 0


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_noise_follows_from_the_seed_and_the_loss_is_pyros(backend):
    vae = MODELS["VAE"]((1, 16, 16)).cuda().eval()
    x = torch.rand(6, 1, 16, 16, device="cuda").round()
    loss = compile_elbo(vae.model, vae.guide, elbo=TraceMeanField_ELBO(), example=(x,), backend=backend)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(loss(x).item())
    assert values[0] == values[1] != values[2]
    torch.manual_seed(1)
    expected = TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x).item()
    assert values[0] == pytest.approx(expected, rel=1e-4)


def test_mixed_precision(images):
    vae = MODELS["MVAE"]((1, 16, 16)).cuda()
    history = fit(vae, images, epochs=2, precision="bfloat16")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
