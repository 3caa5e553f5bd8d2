"""The same part of a model in every runtime that this machine has: what a file is held against."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mvae.compress import Quantize
from pyro_mvae.export import export_onnx
from pyro_mvae.export._quiet import quiet
from pyro_mvae.export.capture import capture
from pyro_mvae.export.executorch import loaded, lower
from pyro_mvae.export.onnx import load_onnx
from pyro_mvae.models import VAE
from pyro_mvae.nets.quantized import is_quantized


def peers(model: VAE, part: str, images: Tensor) -> Iterator[tuple[str, str, Callable[[Tensor], Any]]]:
    """Each runtime, the precision, and a part of the model as a function there.

    PyTorch computes in float32, the others in float32 and int8. A model without ranges is quantised after training for int8, a
    quantised one gives its rounded weights for float32.

    Args:
        images: uint8, what ranges are set on.
    """
    reference = capture(model, part, precision="float32").module
    yield "eager", "float32", without_gradients(reference)
    with quiet():
        yield "torch.compile", "float32", without_gradients(torch.compile(reference))
    integers = model if is_quantized(model) else Quantize()(model, images).eval()
    for precision, version in {"float32": model, "int8": integers}.items():
        yield "onnxruntime", precision, in_onnxruntime(version, part, precision, images)
        yield "executorch", precision, loaded(lower(version, part=part, precision=precision))[1]


def without_gradients(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def call(x: Tensor) -> Any:
        with torch.inference_mode():
            return run(x)

    return call


def in_onnxruntime(model: VAE, part: str, precision: str, images: Tensor) -> Callable[[Tensor], Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{part}.onnx"
        export_onnx(model, path, part=part, precision=precision, images=images)
        return load_onnx(path)[1]
