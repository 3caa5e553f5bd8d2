"""ONNX models: onnxruntime on any system, browsers included."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.capture import capture, listed_once, unchanged
from pyro_mvae.export.executorch import precision_of
from pyro_mvae.export.interleave import interleaved, wide_spread
from pyro_mvae.export.verify import Verification, check_suffix, written
from pyro_mvae.models import VAE

OPSET = 18


def export_onnx(
    model: VAE,
    path: str | os.PathLike[str],
    *,
    part: str = "decoder",
    precision: str | None = None,
    images: Tensor | None = None,
) -> Verification:
    """Write one part of a model as ONNX, run the saved file and compare it with PyTorch.

    At int8 the integers stand in QuantizeLinear and DequantizeLinear pairs, which runtimes fuse into integer kernels.

    Args:
        path: ends in `.onnx`; written atomically, and taken away again if it fails the comparison.
        precision: "float32", or "int8" for a quantised model; what the model is, when None.
        images: what to compare on, uint8, (n, C, H, W); noise when None.

    Raises:
        ValueError: for a precision the model can't have, or a file over tolerance.
        OSError: when the path can't be written.
    """
    path = check_suffix(path, ".onnx")
    precision = precision_of(model, precision)
    graph = capture(model, part, precision=precision, written=integers_in_plain if precision == "int8" else unchanged)
    onnx = import_quietly("onnx")
    with quiet(), listed_once(), read_once():
        exported: Any = torch.onnx.export(
            graph.program(), dynamo=True, verbose=False, opset_version=OPSET, output_names=list(graph.outputs)
        )
        proto = unsigned(folded(stripped(exported.model_proto)))
        onnx.helper.set_model_props(proto, {"precision": precision, "passes": "; ".join(model.passes)})
        onnx.checker.check_model(proto)
    return written(path, lambda temporary: temporary.write_bytes(proto.SerializeToString()), model, images=images)[0]


@contextmanager
def read_once() -> Iterator[None]:
    """Have onnxscript read the source of its 500 operations once a process, not once a file; of the process, as `quiet`."""
    module = import_quietly("torch.onnx._internal.exporter._registration").onnxscript_apis
    with mock.patch.object(module, "get_torchlib_ops", functools.partial(torchlib_ops, module.get_torchlib_ops)):
        yield


@functools.cache
def torchlib_ops(read: Callable[[], list[Any]]) -> list[Any]:
    """What onnxscript says of its operations; never changed by torch, which registers each anew."""
    return read()


def integers_in_plain(net: nn.Module) -> nn.Module:
    """A net whose large dense layers are plain convolutions, which onnxruntime has of integers, and no transposed ones."""
    return interleaved(net, worth=wide_spread)


def stripped(proto: Any) -> Any:
    """A model without the notes on its making that the exporter leaves at every node: four fifths of a small file."""
    for items in (proto.graph.node, proto.graph.initializer, proto.graph.value_info, proto.graph.input, proto.graph.output):
        for item in items:
            del item.metadata_props[:]
    del proto.graph.value_info[:]
    return proto


def folded(proto: Any) -> Any:
    """A model whose zero points are numbers: the exporter leaves those of many channels as a cast of others."""
    onnx = import_quietly("onnx")
    numbers, outputs = {tensor.name: tensor for tensor in proto.graph.initializer}, {each.name for each in proto.graph.output}
    casts = [node for node in proto.graph.node if node.op_type == "Cast" and node.input[0] in numbers]
    for node in (node for node in casts if node.output[0] not in outputs):
        kind = onnx.helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
        values = onnx.numpy_helper.to_array(numbers[node.input[0]]).astype(kind)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
        proto.graph.node.remove(node)
    used = {name for node in proto.graph.node for name in node.input} | outputs
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)
    return proto


def unsigned(proto: Any) -> Any:
    """A model with each int8 weight and zero point shifted to uint8: the same numbers, computed right everywhere.

    Where a processor has AVX2 but no integer dot product, onnxruntime multiplies signed weights by an instruction that
    saturates at 16 bits, and was seen wrong by a sixth of an output's range. Unsigned ones take another way.
    """
    onnx = import_quietly("onnx")
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            values = onnx.numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.uint8), tensor.name))
    return proto


def opset_of(path: Path) -> int:
    """The operator set that a file of ours is written in."""
    (opset,) = (each.version for each in import_quietly("onnx").load(path).opset_import if not each.domain)
    return opset


def load_onnx(path: Path) -> tuple[tuple[int, ...], Callable[[Tensor], list[Tensor]], dict[str, str]]:
    """An ONNX model as its input's shape, a function on one core, and its metadata.

    Raises:
        ValueError: when the file is no model, or takes other than one array of floats of a fixed shape.
    """
    ort = import_quietly("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise ValueError(f"{path} is damaged or no ONNX model: {str(error).splitlines()[0]}") from error
    sources = session.get_inputs()
    if len(sources) != 1:
        names = ", ".join(each.name for each in sources)
        raise ValueError(f"{path} takes {len(sources)} inputs ({names}), expected one, as in the files of this package")
    (source,) = sources
    if source.type != "tensor(float)" or not all(isinstance(size, int) for size in source.shape):
        raise ValueError(
            f"{path} takes {source.name!r}, a {source.type} of shape {source.shape}, expected floats of a fixed shape: "
            "export it with one"
        )
    return tuple(source.shape), Session(session, source.name), dict(session.get_modelmeta().custom_metadata_map)


@dataclass(frozen=True, eq=False)
class Session:
    """An ONNX model as a function."""

    session: Any
    source: str

    def ready(self, x: Tensor) -> Callable[[], object]:
        """A call of the runtime alone, its input and its outputs bound before."""
        binding = self.session.io_binding()
        binding.bind_cpu_input(self.source, x.numpy())
        for output in self.session.get_outputs():
            binding.bind_output(output.name)
        return functools.partial(self.session.run_with_iobinding, binding)

    def __call__(self, x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in self.session.run(None, {self.source: x.numpy()})]
