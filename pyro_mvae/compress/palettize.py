"""Palettes: each layer's weights are a few values, and a file holds which is where."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_mvae.compress.passes import Model, check_float, copied
from pyro_mvae.nets.palette import BITS, palettized
from pyro_mvae.theta import Weights, last_layer


@dataclass(frozen=True)
class Palettize:
    """Give each convolution 2ᵇ values for its weights, by k-means, times a scale for each channel, and let training move both.

    Batch normalisation is folded first. Core ML keeps the palette, scales and b bits a weight (`export_coreml` with precision
    "palettized"); activations are floats. Layers of fewer than 4 weights to a value are left as they are, as is one whose
    weights are Bayesian.

    Args:
        bits: b: 1, 2, 4, 6 or 8.

    Raises:
        ValueError: for other bits, or a model that is quantised or palettised already.

    Source: Han, Mao and Dally, Deep Compression, 2016.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> Palettize(bits=4)(MVAE((1, 28, 28))).passes
        ('Palettize(bits=4)',)
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits}, expected one of: {', '.join(map(str, BITS))}")

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        check_float(model, "given palettes")
        model = copied(model, self)
        bayesian = last_layer(model.decoder)[0] if isinstance(model.theta, Weights) else None
        model.encoder = palettized(model.encoder, bits=self.bits)
        model.decoder = palettized(model.decoder, bits=self.bits, but=bayesian)
        return model
