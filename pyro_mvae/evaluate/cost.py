"""What a model costs wherever it runs: parameters and multiply-adds."""

from __future__ import annotations

from torch import nn

from pyro_mvae.models import VAE
from pyro_mvae.models.vq_vae import Codebook
from pyro_mvae.nets.macs import macs_of


def num_params(model: nn.Module) -> int:
    """Numbers a model learned, those of a codebook, which no gradient moves, included.

    Example:
        >>> num_params(nn.Linear(3, 2))
        8
    """
    codebooks = [module.vectors for module in model.modules() if isinstance(module, Codebook)]
    return sum(tensor.numel() for tensor in [*model.parameters(), *codebooks])


def num_macs(model: VAE) -> int:
    """Multiply-adds to encode one image and decode it again, in linear and convolutional layers.

    Example:
        >>> num_macs(VAE((1, 28, 28))) > 10**6
        True
    """
    return sum(macs_of(net, example) for net, example in model.deployable().values())
