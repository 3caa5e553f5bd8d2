"""The regularisers R(X) of the miniaturisation objective (14), as pure functions; each is minimised.

The paper writes (14) as a maximised f(X) + λR(X), which would reward big weights; here −f(X) + λR(X) is minimised.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def weights(module: nn.Module) -> list[Tensor]:
    """The weights that pruning and quantisation speak of: those of linear and convolutional layers."""
    return [layer.weight for layer in module.modules() if isinstance(layer, LAYERS)]


def channel_axis(layer: nn.Module) -> int:
    """The axis of a layer's weight along which its output channels lie."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1 else 0


def l1(tensors: Iterable[Tensor]) -> Tensor:
    """Σᵢ|wᵢ|, (15).

    Example:
        >>> l1([torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])])
        tensor(6.)
    """
    return torch.stack([tensor.abs().sum() for tensor in tensors]).sum()


def quantization_error(module: nn.Module, *, bits: int = 8) -> Tensor:
    """Σᵢ|wᵢ − w_q,ᵢ|, (17), w_q the weight rounded with one scale per output channel, its gradient stopped.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[127.0, 0.4]]))
        >>> quantization_error(layer)
        tensor(0.4000, grad_fn=<SumBackward0>)
    """
    levels = 2 ** (bits - 1) - 1
    errors = []
    for layer in module.modules():
        if isinstance(layer, LAYERS):
            w = layer.weight
            other = [d for d in range(w.ndim) if d != channel_axis(layer)]
            scale = (w.detach().abs().amax(other, keepdim=True) / levels).clamp(min=1e-12)
            errors.append((w - torch.round(w.detach() / scale) * scale).abs().sum())
    return torch.stack(errors).sum()


def divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL(p ‖ q) for each datum, (19): in closed form where there is one, else estimated without bias by one sample of p.

    Example:
        >>> import pyro.distributions as dist
        >>> divergence(dist.Normal(0.0, 1.0), dist.Normal(1.0, 1.0))
        tensor(0.5000)
    """
    try:
        return kl_divergence(p, q)
    except NotImplementedError:
        x = p.sample()
        return p.log_prob(x) - q.log_prob(x)


def sparsity(z: Tensor) -> Tensor:
    """‖α‖₁ of each datum's code, (21); (n,).

    Example:
        >>> sparsity(torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
        tensor([3.0000, 0.5000])
    """
    return z.abs().sum(-1)
