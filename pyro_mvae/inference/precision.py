"""Mixed precision: the nets in bfloat16, everything else in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

PRECISIONS = ("float32", "bfloat16")


def require(precision: str, device: torch.device) -> None:
    """Raise a ValueError where the hardware has no arithmetic of a precision and would only imitate it, slowly."""
    if precision == "float32":
        return
    known = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not known:
        raise ValueError(f"this {device.type} has no bfloat16 arithmetic: train with precision='float32'")


@contextmanager
def nets_in(precision: str, model: nn.Module) -> Iterator[None]:
    """Run each net of a model, its encoders and decoders, under autocast; what they return is float32 again.

    Densities are left alone: a sum of hundreds of log-probabilities wants more than the 8 bits of bfloat16.
    """
    nets = [] if precision == "float32" else [net for net in model.children() if any(True for _ in net.parameters())]
    for net in nets:
        net.forward = in_bfloat16(net.forward)
    try:
        yield
    finally:
        for net in nets:
            del net.forward


def in_bfloat16(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(value for value in args if isinstance(value, Tensor)).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            result = forward(*args, **kwargs)
        return tree_map(lambda value: value.float() if isinstance(value, Tensor) else value, result)

    return run
