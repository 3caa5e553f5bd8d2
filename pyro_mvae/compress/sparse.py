"""Sparse codes: most of what an image is encoded as is exactly 0, (21)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_mvae.compress.passes import Model, copied
from pyro_mvae.models import VQVAE
from pyro_mvae.nets.sparse import Thresholded


@dataclass(frozen=True)
class SparseCode:
    """Soft-threshold the locs that the encoder gives: codes have exact zeros, on the phone too, (21).

    Train on with the penalty `Sparse`, the L1 norm that a Laplace prior puts on a code: the two together, strong enough, let an
    image be said in few numbers.
    `evaluate.code_sparsity` tells in how many, and in how many bits.

    Args:
        threshold: below which a loc, in units of the code, is 0.

    Raises:
        ValueError: for a threshold that is not above 0, a model that is sparse already, or a VQ-VAE, whose codes are numbers of
            vectors.

    Example:
        >>> import torch
        >>> from pyro_mvae.models import MVAE
        >>> model = SparseCode(threshold=10.0)(MVAE((1, 28, 28))).eval()
        >>> model.encode(torch.rand(2, 1, 28, 28)).count_nonzero().item()
        0
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold is {self.threshold}, expected more than 0")

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        if isinstance(model, VQVAE):
            raise ValueError(
                "a VQ-VAE's code is a number for each place, which can't be near 0: prune its codes, with PruneLatents"
            )
        if isinstance(model.encoder, Thresholded):
            raise ValueError(f"the model's code is sparse already, its threshold {model.encoder.threshold:g}")
        model = copied(model, self)
        model.encoder = Thresholded(model.encoder, self.threshold)
        return model
