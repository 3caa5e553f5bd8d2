"""A model to export, as floats and as integers."""

from __future__ import annotations

import pytest
import torch

from pyro_mvae import Quantize
from tests.catalog import MODELS


@pytest.fixture(scope="module")
def models(images):
    torch.manual_seed(0)
    model = MODELS["VAE"]((1, 16, 16)).train()
    model.guide(images[:64].float() / 255)
    return {"float16": model.eval(), "int8": Quantize()(model, images).eval()}
