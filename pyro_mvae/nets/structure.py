"""What passes have made of a model's nets, sizes aside: what a checkpoint has to say of them to make them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pyro_mvae.nets.fold import fold_batch_norm
from pyro_mvae.nets.palette import how_palettized, with_palettes
from pyro_mvae.nets.quantized import how_quantized, learn_ranges, quantized_pair
from pyro_mvae.nets.sparse import Thresholded


def structure(encoder: nn.Module, decoder: nn.Module) -> dict[str, Any]:
    """Which of both nets is folded, how they are quantised or palettised, and what their codes are thresholded at.

    Example:
        >>> from pyro_mvae.nets import MobileDecoder, MobileEncoder
        >>> structure(MobileEncoder((1, 8, 8), 4), MobileDecoder((1, 8, 8), 4))
        {'folded': [False, False], 'threshold': None, 'quantized': None, 'palettized': None}
    """
    normalised = [any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()) for net in (encoder, decoder)]
    threshold = encoder.threshold if isinstance(encoder, Thresholded) else None
    palettes = [how_palettized(net) for net in (encoder, decoder)]
    return {
        "folded": [not each for each in normalised],
        "threshold": threshold,
        "quantized": how_quantized(decoder),
        "palettized": palettes if any(palettes) else None,
    }


def restructured(
    encoder: nn.Module,
    decoder: nn.Module,
    *,
    folded: Sequence[bool] = (False, False),
    threshold: float | None = None,
    quantized: dict[str, Any] | None = None,
    palettized: Sequence[dict[str, Any] | None] | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Fresh nets, made again into what `structure` says.

    Example:
        >>> from pyro_mvae.nets import MobileDecoder, MobileEncoder
        >>> about = {"folded": [True, True], "threshold": 0.5, "quantized": {"bits": 4, "learned": True}}
        >>> made = structure(*restructured(MobileEncoder((1, 8, 8), 4), MobileDecoder((1, 8, 8), 4), **about))
        >>> made == {**about, "palettized": None}
        True
    """
    encoder, decoder = (fold_batch_norm(net) if fold else net for net, fold in zip((encoder, decoder), folded, strict=True))
    if threshold is not None:
        encoder = Thresholded(encoder, threshold)
    if quantized is not None:
        encoder, decoder = quantized_pair(encoder, decoder, bits=quantized["bits"])
        if quantized["learned"]:
            learn_ranges(encoder)
            learn_ranges(decoder)
    if palettized is not None:
        nets = zip((encoder, decoder), palettized, strict=True)
        encoder, decoder = (net if how is None else with_palettes(net, **how) for net, how in nets)
    return encoder, decoder
