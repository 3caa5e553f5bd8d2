"""Evaluate a saved Core ML `.mlpackage` on any operating system, to check it where nothing can run it.

The package is read back as a program in MIL, Core ML's intermediate language, and each operation computed in torch.
What comes out is what the program says; a device may add rounding of its own (the neural engine sums in float16).
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.mil_ops import CONSTANTS, OPERATIONS

Shapes = list[list[tuple[int, int | None]]]
"""Alternatives, each a list of the smallest and largest size (None: no limit) of every dimension."""

# torch computes little in unsigned integers of more than 8 bits: they take the next wider signed type.
_TORCH_TYPES = {
    "fp16": torch.float32,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "bool": torch.bool,
}


def evaluate_mlpackage(
    path: str | Path, inputs: Mapping[str, np.ndarray], *, function: str | None = None
) -> dict[str, np.ndarray]:
    """Evaluate a saved Core ML package once.

    `path` is the package's folder, `function` one of those it has, where there are several; `inputs` and the result are as in
    `MilProgram.__call__`. To evaluate one package many times, load it with `MilProgram`. Raises ValueError as `MilProgram.load`
    and `MilProgram.__call__` do.

    >>> evaluate_mlpackage("nowhere.mlpackage", {})
    Traceback (most recent call last):
    ValueError: nowhere.mlpackage does not exist, expected a folder saved as a Core ML .mlpackage; check the path
    """
    return MilProgram.load(path, function=function)(inputs)


def functions_of(path: str | Path) -> tuple[str, ...]:
    """The names of a package's functions; ("main",) for most. Raises ValueError if it is no readable package.

    >>> functions_of("nowhere.mlpackage")
    Traceback (most recent call last):
    ValueError: nowhere.mlpackage does not exist, expected a folder saved as a Core ML .mlpackage; check the path
    """
    return tuple(sorted(_read(Path(path))[0].mlProgram.functions))


@dataclass(frozen=True, eq=False)
class MilProgram:
    """A Core ML package, loaded once to be evaluated many times.

    `inputs` and `outputs` name the program's tensors; an input has its shape (the default one, if it has several).
    `images` are the names of those that an app sees as images. `metadata` is what the exporter wrote into the package's
    user-defined metadata. An image counts as the tensor that the program works on, (1, channels, height, width), its pixels
    before any scale and bias.

    Example::

        program = MilProgram.load("decoder.mlpackage")
        image = program({"z": np.zeros(program.inputs["z"], np.float32)})["image"]
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    metadata: dict[str, str]
    images: frozenset[str]
    _shapes: dict[str, Shapes] = field(repr=False)
    _function: Any = field(repr=False)  # coremltools' graph; the dicts below have its variables for keys
    _steps: tuple[_Step, ...] = field(repr=False)
    _constants: dict[Any, Tensor | str] = field(repr=False)
    _types: dict[Any, str] = field(repr=False)

    @classmethod
    def load(cls, path: str | Path, *, function: str | None = None) -> MilProgram:
        """Read a package from its folder; the function of that name, where it has several.

        Raises ValueError if `path` is no readable package (absent, damaged, not an ML program), if it has no such function
        or several to choose from, or if the program has an operation that this evaluator does not know.

        >>> MilProgram.load("nowhere.mlpackage")
        Traceback (most recent call last):
        ValueError: nowhere.mlpackage does not exist, expected a folder saved as a Core ML .mlpackage; check the path
        """
        path = Path(path)
        spec, weights = _read(path)
        _refuse_unknown_operations(spec, path)
        name = _chosen(function, spec, path)
        graph = _function(spec, weights, path, name)
        features, results = _features(spec, name)
        type_name = import_quietly("coremltools.converters.mil.mil.types").builtin_to_string
        shapes = {feature.name: _shapes(feature, graph.inputs[feature.name]) for feature in features}
        steps = tuple(_step(operation) for operation in graph.operations if operation.op_type not in CONSTANTS)
        used = {*graph.inputs.values(), *graph.outputs, *(var for step in steps for var in step.variables())}
        return cls(
            inputs={feature.name: _default_shape(feature, shapes[feature.name]) for feature in features},
            outputs=tuple(var.name for var in graph.outputs),
            metadata=dict(spec.description.metadata.userDefined),
            images=frozenset(each.name for each in (*features, *results) if each.type.WhichOneof("Type") == "imageType"),
            _shapes=shapes,
            _function=graph,
            _steps=steps,
            _constants={var: _constant(var) for var in used if _is_constant(var)},
            _types={var: type_name(var.dtype) for var in used},
        )

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the program.

        `inputs` has an array for every name in `self.inputs`, of that shape or of another that the package allows, and
        of any type that casts to the program's own (float64 to float32, say, but not float32 to int32). The result has
        an array for every name in `self.outputs`, of the program's type. A float16 tensor of the program is computed in
        float32 and rounded to float16 after each operation. Raises ValueError if an input is missing, unknown, or has
        the wrong shape or type.
        """
        values: dict[Any, Any] = {**self._constants, **self._checked(inputs)}
        for step in self._steps:
            results = OPERATIONS[step.kind](**step.arguments(values))
            results = [results] if isinstance(results, Tensor) else results
            for var, result in zip(step.outputs, results, strict=True):
                values[var] = _as_declared(result, self._types[var])
        return {var.name: _to_numpy(values[var], self._types[var]) for var in self._function.outputs}

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """The shapes that an input may have, the smallest of a range."""
        return [tuple(low for low, _ in shape) for shape in self._shapes[name]]

    def noise(self, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Something to try the program with: 0 to 255 at random for images, and for pixels of packages of ours, 0 to 1 for what
        else has the shape of pictures, a normal distribution for the rest; zeros for integers."""
        generator = np.random.default_rng(seed)
        drawn = {}
        for name, shape in self.inputs.items():
            kind = np.dtype(_numpy_type(self._types[self._function.inputs[name]]))
            largest = 255 if name in self.images or "precision" in self.metadata else 1
            values = largest * generator.random(shape) if len(shape) == 4 else generator.standard_normal(shape)
            drawn[name] = values.astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
        return drawn

    def _checked(self, inputs: Mapping[str, np.ndarray]) -> dict[Any, Tensor]:
        if set(inputs) != set(self.inputs):
            raise ValueError(f"got inputs {sorted(inputs)}, expected {sorted(self.inputs)}; give exactly one array for each")
        return {self._function.inputs[name]: self._tensor(name, np.asarray(array)) for name, array in inputs.items()}

    def _tensor(self, name: str, array: np.ndarray) -> Tensor:
        if not any(_fits(array.shape, shape) for shape in self._shapes[name]):
            expected = " or ".join(_describe(shape) for shape in self._shapes[name])
            raise ValueError(f"input {name!r} has shape {array.shape}, expected {expected}; reshape the array")
        kind = _numpy_type(self._types[self._function.inputs[name]])
        if not np.can_cast(array.dtype, kind, "same_kind"):
            raise ValueError(f"input {name!r} has type {array.dtype}, expected {kind}; cast the array")
        with np.errstate(over="ignore"):
            return _to_torch(array.astype(kind))


@dataclass(frozen=True)
class _Step:
    kind: str
    operands: dict[str, Any]  # a MIL name → a coremltools Var, or a sequence of them
    outputs: Sequence[Any]

    def variables(self) -> list[Any]:
        groups = [operand if isinstance(operand, (list, tuple)) else [operand] for operand in self.operands.values()]
        return [var for group in groups for var in group] + list(self.outputs)

    def arguments(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        return {
            name: [values[var] for var in operand] if isinstance(operand, (list, tuple)) else values[operand]
            for name, operand in self.operands.items()
        }


def _step(operation: Any) -> _Step:
    operands = {name: operand for name, operand in operation.inputs.items() if operand is not None}
    return _Step(operation.op_type, operands, operation.outputs)


def _read(path: Path) -> tuple[Any, Path]:
    """The package's specification (a protobuf message) and the folder of its weights."""
    if not path.exists():
        raise ValueError(f"{path} does not exist, expected a folder saved as a Core ML .mlpackage; check the path")
    spec = import_quietly("coremltools").proto.Model_pb2.Model()
    try:  # by hand: coremltools would write a manifest into a folder without one
        manifest = json.loads((path / "Manifest.json").read_text())
        model = path / "Data" / manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        spec.ParseFromString(model.read_bytes())
    except Exception as error:
        raise _unreadable(path, error) from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise ValueError(
            f'{path} holds a Core ML {spec.WhichOneof("Type")}, expected an ML program; convert with convert_to="mlprogram"'
        )
    return spec, model.parent / "weights"


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ValueError(f"{path} cannot be read as a Core ML .mlpackage ({reason}); save the package again")


def _refuse_unknown_operations(spec: Any, path: Path) -> None:
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                if operation.type not in OPERATIONS and operation.type not in CONSTANTS:
                    raise ValueError(
                        f"{path} has operation {operation.type!r}, which this evaluator does not know; "
                        "evaluate it on macOS, or convert a network without it"
                    )


def _chosen(name: str | None, spec: Any, path: Path) -> str:
    """The function that is asked for, or the only one."""
    names = sorted(spec.mlProgram.functions)
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        raise ValueError(f"{path} has functions {', '.join(names)}, expected one of them: function is {name!r}")
    return name


def _features(spec: Any, name: str) -> tuple[Any, Any]:
    """What the specification says of a function's inputs, and of its outputs."""
    function = {each.name: each for each in spec.description.functions}.get(name, spec.description)
    return function.input, function.output


def _function(spec: Any, weights: Path, path: Path, name: str) -> Any:
    """A function of the program, as coremltools' own graph of operations."""
    load = import_quietly("coremltools.converters.mil.frontend.milproto.load").load
    try:
        with quiet(), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # coremltools folds constants as it reads, overflows included
            program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights))
    except Exception as error:
        raise _unreadable(path, error) from error
    return program.functions[name]


def _shapes(feature: Any, var: Any) -> Shapes:
    """The shapes that the specification allows for an input."""
    array = feature.type.multiArrayType
    flexible = array.WhichOneof("ShapeFlexibility")
    if feature.type.WhichOneof("Type") != "multiArrayType":
        return [[_bound(size) for size in var.shape]]
    if flexible == "enumeratedShapes":
        return [[(size, size) for size in shape.shape] for shape in array.enumeratedShapes.shapes]
    if flexible == "shapeRange":
        bounds = array.shapeRange.sizeRanges
        return [[(bound.lowerBound, None if bound.upperBound < 0 else bound.upperBound) for bound in bounds]]
    return [[(size, size) for size in array.shape]]


def _bound(size: Any) -> tuple[int, int | None]:
    return (int(size), int(size)) if isinstance(size, (int, np.integer)) else (1, None)  # else a sympy symbol


def _default_shape(feature: Any, shapes: Shapes) -> tuple[int, ...]:
    named = tuple(feature.type.multiArrayType.shape)
    return named or tuple(low for low, _ in shapes[0])


def _fits(shape: tuple[int, ...], bounds: list[tuple[int, int | None]]) -> bool:
    return len(shape) == len(bounds) and all(
        low <= size and (high is None or size <= high) for size, (low, high) in zip(shape, bounds, strict=True)
    )


def _describe(bounds: list[tuple[int, int | None]]) -> str:
    sizes = [str(low) if low == high else f"{low} to {high or 'any'}" for low, high in bounds]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _is_constant(var: Any) -> bool:
    return var.op is not None and var.op.op_type in CONSTANTS


def _constant(var: Any) -> Tensor | str:
    value = _decompressed(var)
    return str(value) if isinstance(value, str) else _to_torch(np.asarray(value))


def _decompressed(var: Any) -> Any:
    # Not by coremltools' materialized_val_inference: it knows no table of values that is quantised in its turn.
    operation = var.op
    if operation.op_type == "const":
        return var.val
    if operation.op_type == "constexpr_cast":
        return operation.materialized_val_inference()
    operands = [operation.inputs.get(name) for name in inspect.signature(operation.decompress).parameters]
    result = operation.decompress(*[None if operand is None else _decompressed(operand) for operand in operands])
    return result[var.op_output_idx] if isinstance(result, tuple) else result


def _as_declared(result: Tensor, kind: str) -> Tensor:
    return result.half().float() if kind == "fp16" else result.to(_TORCH_TYPES[kind])


def _to_torch(array: np.ndarray) -> Tensor:
    wider = {"float16": "float32", "uint16": "int32", "uint32": "int64"}
    return torch.from_numpy(np.array(array, dtype=wider.get(array.dtype.name, array.dtype.name)))


def _numpy_type(kind: str) -> str:
    return {"fp16": "float16", "fp32": "float32"}.get(kind, kind)


def _to_numpy(value: Tensor, kind: str) -> np.ndarray:
    return value.numpy().astype(_numpy_type(kind))
