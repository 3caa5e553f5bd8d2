"""Shrinking: a smaller model of the same kind, to be trained from the start or taught by the larger one (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mvae.compress.passes import Model, check_float, needed
from pyro_mvae.compress.prune import channels, kept_channels, num_active
from pyro_mvae.models import VAE
from pyro_mvae.nets.structure import structure
from pyro_mvae.numbers import count


@dataclass(frozen=True)
class Shrink:
    """Fewer neurons, fewer layers, a smaller code: a new model of the same class, its nets with weights of their own.

    What was learned besides the nets, the clusters of a prior say, is kept where the size of the code is.

    Args:
        width: share of the channels of each layer that is left, above 0 and up to 1.
        layers: how many of the widths, from the largest map on, are left; all when None. The map that is left is larger then,
            and so are the two layers between it and the code.
        latent_dim: size of z; when None, that of the larger model, or, with images, the number of its units that are active on
            them, see `PruneLatents`.
        round_to: what the numbers of channels are multiples of.
        seed: of the new weights.

    Raises:
        ValueError: for sizes that can't be, or a model that went through passes which new weights would undo.

    Source: the paper, section 3.3.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> small = Shrink(width=0.5, latent_dim=8)(VAE((1, 28, 28), 16))
        >>> small.config["widths"], small.latent_dim
        ([12, 24], 8)
    """

    width: float = 1.0
    layers: int | None = None
    latent_dim: int | None = None
    round_to: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise ValueError(f"width is {self.width}, expected more than 0 and 1 at most")
        for name in ("layers", "latent_dim", "round_to"):
            if getattr(self, name) is not None:
                count(getattr(self, name), name)

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        check_float(model, "shrunk")
        if shape_of(model) != shape_of(type(model)(**model.config)):
            raise ValueError(
                "a model that was pruned, folded or made sparse can't be shrunk: shrink it first, then do the rest"
                if model.passes
                else "a model with nets of your own can't be shrunk, as new ones are of this package: remove channels of yours"
            )
        widths, hidden = model.config["widths"], model.config["hidden"]
        if self.layers is not None and self.layers > len(widths):
            raise ValueError(f"layers is {self.layers}, expected {len(widths)} at most, which is what there is")
        sizes = [kept_channels(n, ratio=1 - self.width, round_to=self.round_to) for n in [*widths, hidden]]
        config = {**model.config, "widths": sizes[: self.layers or len(widths)], "hidden": sizes[-1]}
        config["latent_dim"] = self.latent_dim or self.active(model, images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            small = type(model)(**config)
        small.load_state_dict({**small.state_dict(), **beside_nets(model, like=small)})
        small.passes = (*model.passes, repr(self))
        return small.to(next(model.parameters()).device)

    def active(self, model: VAE, images: Tensor | None) -> int:
        """The size that the code needs, where images tell."""
        if images is None or model.config["latent_dim"] != model.latent_dim:  # a VQ-VAE's is that of a vector
            return model.config["latent_dim"]
        return num_active(model.latent_activity(needed(images, self)))


def shape_of(model: VAE) -> tuple[dict[str, int], dict[str, Any]]:
    """What passes may have made other than `config` says."""
    return channels(model), structure(model.encoder, model.decoder)


def beside_nets(model: VAE, *, like: VAE) -> dict[str, Tensor]:
    """What a model learned besides its nets and a likelihood of weights, where another has it of the same shape."""
    others = like.state_dict()
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(("encoder", "decoder", "theta")) and name in others and others[name].shape == value.shape
    }
