"""The kinds of nets that a model can be given, by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pyro_mvae.nets.conv import ConvDecoder, ConvEncoder, Shape
from pyro_mvae.nets.mlp import MLPDecoder, MLPEncoder
from pyro_mvae.nets.mobile import MobileDecoder, MobileEncoder, default_widths

KINDS = ("conv", "mobile", "mlp")


def usual_sizes(kind: str, image_shape: Shape) -> tuple[tuple[int, ...], int]:
    """The widths and the hidden units that nets of a kind have unless told.

    Raises:
        ValueError: for an unknown kind.

    Example:
        >>> usual_sizes("mlp", (1, 28, 28))
        ((), 400)
    """
    if kind not in KINDS:
        raise ValueError(f"net is {kind!r}, expected one of: {', '.join(KINDS)}")
    return {"conv": ((24, 48), 128), "mobile": (default_widths(image_shape), 128), "mlp": ((), 400)}[kind]


def check_widths(kind: str, widths: Sequence[int]) -> None:
    """Raise a ValueError where a kind of nets needs widths and there are none."""
    if kind != "mlp" and not widths:
        raise ValueError(f"widths are empty, expected one or more for {kind} nets")


def make_nets(
    kind: str, image_shape: Shape, latent_dim: int, *, widths: Sequence[int], hidden: int, num_scales: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """An encoder, x → (loc, scale), and a decoder, z → the likelihood's location, of a kind.

    Raises:
        ValueError: for an unknown kind, or no widths where it needs one.

    Example:
        >>> encoder, decoder = make_nets("mobile", (1, 28, 28), 16, widths=(8, 16), hidden=32)
        >>> type(decoder).__name__
        'MobileDecoder'
    """
    check_widths(kind, widths)
    encoders = {"conv": ConvEncoder, "mobile": MobileEncoder, "mlp": MLPEncoder}
    encoder = encoders[kind](image_shape, latent_dim, widths=widths, hidden=hidden, num_scales=num_scales)
    if kind == "mobile":
        return encoder, MobileDecoder(image_shape, latent_dim, widths=widths)
    decoders = {"conv": ConvDecoder, "mlp": MLPDecoder}
    return encoder, decoders[kind](image_shape, latent_dim, widths=widths, hidden=hidden)
