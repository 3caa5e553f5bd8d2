"""ExecuTorch programs: for XNNPACK on Android and every other CPU, or for Core ML on Apple's systems."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pyro_mvae.export._quiet import import_quietly, no_native_messages, quiet
from pyro_mvae.export.capture import PARTS, capture, listed_once
from pyro_mvae.export.delegated import core_ml
from pyro_mvae.export.interleave import interleaved
from pyro_mvae.export.verify import Verification, check_suffix, written
from pyro_mvae.models import VAE
from pyro_mvae.nets.quantized import is_quantized

FLOATS = {"xnnpack": "float32", "coreml": "float16"}
"""Backends, and what they compute in where it is no integers."""
ALIGNMENT = 16
"""Bytes: of constants and segments of a file, as XNNPACK's own are; what a runtime reads into memory is aligned to no more."""


def export_executorch(
    model: VAE,
    path: str | os.PathLike[str],
    *,
    part: str = "decoder",
    precision: str | None = None,
    backend: str = "xnnpack",
    images: Tensor | None = None,
) -> Verification:
    """Write one part of a model as an ExecuTorch `.pte`, run the saved file and compare it with PyTorch.

    A program for Core ML is evaluated as a package is.

    Args:
        path: ends in `.pte`; nothing is written, and what stands there stays, if it fails the comparison.
        precision: "float32" (for Core ML "float16"), or "int8" for a quantised model; what the model is, when None.
        backend: what runs it: "xnnpack", or "coreml", on iOS 16 and later, for int8 iOS 18.
        images: what to compare on, uint8, (n, C, H, W); noise when None.

    Raises:
        ValueError: for a precision the model can't have, an unknown backend, or a file over tolerance.
        OSError: when the path can't be written.
    """
    path = check_suffix(path, ".pte")
    if backend not in FLOATS:
        raise ValueError(f"backend is {backend!r}, expected one of: {', '.join(FLOATS)}")
    precision = precision_of(model, precision, floats=FLOATS[backend])
    content = lower(model, part=part, precision=precision, backend=backend)
    return written(path, lambda temporary: temporary.write_bytes(content), model, precision=precision, images=images)[0]


def precision_of(model: VAE, precision: str | None, *, floats: str = "float32") -> str:
    """The precision that is asked for, or that of the model; ValueError where a runtime for static int8 has no ranges."""
    precision = precision or ("int8" if is_quantized(model) else floats)
    if precision not in (floats, "int8"):
        raise ValueError(f"precision is {precision!r}, expected {floats} or int8")
    if precision == "int8" and not is_quantized(model):
        raise ValueError(
            "int8 needs the ranges of the activations, and this model has none: quantise it and fit it first, or miniaturize it"
        )
    return precision


def lower(model: VAE, *, part: str, precision: str, backend: str = "xnnpack") -> bytes:
    """The content of a `.pte`."""
    if backend == "coreml":
        with quiet(), listed_once(), core_ml(precision) as partitioner:
            return edge(capture(model, part, precision=precision).program(), partitioner)
    with quiet():
        program = capture(model, part, precision=precision, written=interleaved).program()
    return lowered(program)


def lowered(program: torch.export.ExportedProgram) -> bytes:
    """The content of the `.pte` of a captured graph, for XNNPACK."""
    xnnpack = import_quietly("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    read_late(program.graph)
    with quiet(), listed_once(), constants_beside_graph():
        return edge(program, xnnpack.XnnpackPartitioner())


def read_late(graph: torch.fx.Graph) -> None:
    """Move what reads integers as floats to where the floats are used, in place.

    ExecuTorch merges what XNNPACK can run from the last node to the first, in one pass, and layers of one input count as one:
    with the floats of one head before the other head it sees a cycle, and leaves a second piece.
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default and node.users:
            min(node.users, key=place.__getitem__).prepend(node)


def edge(program: torch.export.ExportedProgram, partitioner: Any) -> bytes:
    """The content of the `.pte` of a captured graph."""
    exir = import_quietly("executorch.exir")
    given = exir.to_edge_transform_and_lower(program, partitioner=[partitioner])
    return given.to_executorch(exir.ExecutorchBackendConfig(segment_alignment=ALIGNMENT)).buffer


@contextmanager
def constants_beside_graph() -> Iterator[None]:
    """Write XNNPACK's constants behind the graph that reads them: a third of a small file is their names and places otherwise.

    ExecuTorch gives each one a name in the program, for methods to share it, and a place of its own.
    """
    backend = import_quietly("executorch.backends.xnnpack.xnnpack_preprocess")
    stores = import_quietly("executorch.exir._serialize._named_data_store")
    known: dict[str, bytes] = {}

    class Kept(stores.NamedDataStore):
        def add_named_data(self, key: str, data: bytes, *_: Any, **__: Any) -> None:
            known[key] = data

    def serialized(graph: Any, constants: bytearray) -> bytes:
        places: dict[str, int] = {}
        for constant in graph.constant_data:
            if constant.named_key:
                if constant.named_key not in places:
                    constants.extend(bytes(-len(constants) % ALIGNMENT))
                    places[constant.named_key] = len(constants)
                    constants.extend(known[constant.named_key])
                constant.offset = places[constant.named_key]
            constant.named_key = None
        return written_out(graph, constants)

    written_out = backend.serialize_xnnpack_binary
    with mock.patch.multiple(backend, NamedDataStore=Kept, serialize_xnnpack_binary=serialized):
        yield


def lower_parts(model: VAE) -> dict[str, bytes]:
    """The contents of `encoder.pte` and `decoder.pte`, at the model's own precision."""
    precision = precision_of(model, None)
    return {part: lower(model, part=part, precision=precision) for part in PARTS}


def measured_bytes(model: VAE) -> int:
    """The size of `encoder.pte` and `decoder.pte` together, by making them."""
    return sum(map(len, lower_parts(model).values()))


@functools.cache
def runtime() -> Any:
    """ExecuTorch's runtime in this process, on one thread: small nets are slower on more, and latencies are of one."""
    with no_native_messages():
        # "unsafe" for programs already loaded, of which there are none yet
        import_quietly("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(1)
        return import_quietly("executorch.runtime").Runtime.get()


def load_executorch(path: Path) -> tuple[tuple[int, ...], Callable[[Tensor], list[Tensor]]]:
    """A `.pte` as its input's shape and a function.

    Raises:
        ValueError: when the file is no program.
    """
    try:
        return loaded(path)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged or no ExecuTorch program: {error}") from error


def loaded(content: Path | bytes) -> tuple[tuple[int, ...], Program]:
    """A program, or its file, as its input's shape and a function; RuntimeError for what is none."""
    with no_native_messages():
        program = runtime().load_program(content)
        method = program.load_method("forward")
        assert method is not None
        shape = tuple(method.metadata.input_tensor_meta(0).sizes())
        # the first run starts the threads, which has C++ describe the processor
        method.execute([torch.zeros(shape)])
    return shape, Program(method, kept=(content, program))


@dataclass(frozen=True, eq=False)
class Program:
    """A loaded method as a function. `kept` is the memory that the method reads from without owning it."""

    method: Any
    kept: tuple[object, ...]

    def ready(self, x: Tensor) -> Callable[[], object]:
        """A call of the runtime alone, its input set before; the whole call where the input's memory is used again."""
        method, expected = self.method._method, self(x)
        method.set_inputs([x])
        for _ in range(2):
            method.execute()
        whole = all(torch.equal(*each) for each in zip(method.get_outputs(), expected, strict=True))
        return method.execute if whole else functools.partial(self, x)

    def __call__(self, x: Tensor) -> list[Tensor]:
        return list(self.method.execute([x]))  # copies: the runtime's own memory is overwritten by the next call
