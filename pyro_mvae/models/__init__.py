"""The models: generative stories and their guides."""

from pyro_mvae.models.mvae import MVAE
from pyro_mvae.models.vae import VAE

__all__ = ["MVAE", "VAE"]
