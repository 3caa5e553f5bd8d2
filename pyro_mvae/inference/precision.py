"""Mixed precision: the nets in bfloat16, everything else in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_mvae.inference.forward import Forward, changed

PRECISIONS = ("float32", "bfloat16")


def require(precision: str, device: torch.device) -> None:
    """Raise a ValueError for an unknown precision, and for one that the hardware would only imitate, slowly."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of: {', '.join(PRECISIONS)}")
    if precision not in computed(device):
        raise ValueError(f"this {device.type} has no {precision} arithmetic: train with precision='float32'")


def computed(device: torch.device) -> tuple[str, ...]:
    """The precisions that the hardware computes in.

    Example:
        >>> computed(torch.device("cpu"))[0]
        'float32'
    """
    known = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PRECISIONS if known else PRECISIONS[:1]


@contextmanager
def nets_in(precision: str, model: nn.Module) -> Iterator[None]:
    """Run each net of a model, its encoders and decoders, under autocast; what they return is float32 again.

    Densities are left alone: a sum of hundreds of log-probabilities wants more than the 8 bits of bfloat16.
    """
    nets = [] if precision == "float32" else [net for net in model.children() if any(True for _ in net.parameters())]
    with changed(nets, in_bfloat16):
        yield


def in_bfloat16(forward: Forward) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(value for value in args if isinstance(value, Tensor)).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            result = forward(*args, **kwargs)
        return tree_map(lambda value: value.float() if isinstance(value, Tensor) else value, result)

    return run
