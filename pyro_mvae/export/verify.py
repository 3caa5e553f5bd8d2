"""A saved file against PyTorch: run it where it can be run, evaluate it where it can't, and compare."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pyro_mvae.atomic import atomic
from pyro_mvae.export.capture import PREDICTIVE, Capture, capture
from pyro_mvae.export.delegated import delegated
from pyro_mvae.export.mil import MilProgram
from pyro_mvae.models import VAE
from pyro_mvae.nets.quantized import is_quantized

TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "palettized": 1e-2, "int8_weights": 1e-2, "int4": 1e-2, "int8": 5e-2}
ROUNDED = ("int8_weights", "int4")
FLOAT16_IN_PYTORCH = ("encoder", "decoder", "reconstruct")
"""Parts that PyTorch computes in float16 too; of the others no more than the tolerance is allowed."""
LEAST_PSNR = 40.0
HIGHEST_PSNR = 200.0  # what equal outputs are reported as: JSON has no infinity
NUM_IMAGES = 64


@dataclass(frozen=True)
class Verification:
    """What comparing a file with PyTorch found.

    `max_abs_diff` and `psnr_db` are the worst of the file's outputs, in units of the output's range: [0, 1] for pixels, and from
    the smallest to the largest value over the images compared for `loc` and `scale`. `function` is the name of what was compared
    of a Core ML package that has several, `pictures` what an app sees pictures as, "arrays" or "images". `rounding_psnr_db` is
    what rounding the weights of a model of floats costs: the PSNR of PyTorch at the file's precision against PyTorch in float32;
    None where no more is rounded than in the model itself.
    """

    path: str
    format: str
    part: str
    precision: str
    bytes: int
    max_abs_diff: float
    psnr_db: float
    function: str | None = None
    pictures: str = "arrays"
    batch_sizes: tuple[int, ...] = (1,)
    num_images: int = NUM_IMAGES
    rounding_psnr_db: float | None = None


@dataclass(frozen=True, eq=False)
class Artifact:
    """A saved file as a function, with what is known of it; `precision` is None where the format doesn't say.

    Attributes:
        run: inputs → outputs, pictures among them in [0, 1] whatever an app sees them as.
        in_float16: whether it computes in float16, between integers too.
        part: what it is of a model, by the shapes of what goes in and comes out.
    """

    format: str
    input_shape: tuple[int, ...]
    run: Callable[[Tensor], list[Tensor]]
    precision: str | None
    pictures: str = "arrays"
    batch_sizes: tuple[int, ...] = (1,)
    in_float16: bool = False

    @functools.cached_property
    def part(self) -> str:
        outputs = self.run(torch.zeros(self.input_shape))
        if len(self.input_shape) == 2:
            return "decoder" if len(outputs) == 1 else PREDICTIVE
        return {4: "reconstruct", 1: "anomaly"}.get(outputs[0].ndim, "encoder")


def load_artifact(path: str | os.PathLike[str], *, function: str | None = None) -> Artifact:
    """Load a `.mlpackage`, `.pte` or `.onnx` to run it here; one function of a package that has several.

    Raises:
        ValueError: when there is no such file, it is damaged, or of another format.
    """
    from pyro_mvae.export.executorch import load_executorch
    from pyro_mvae.export.onnx import load_onnx

    path = Path(path)
    if not path.exists():
        raise ValueError(f"no artifact at {path}: expected a .mlpackage, .pte or .onnx")
    if path.suffix == ".mlpackage":
        return evaluated("coreml", MilProgram.load(path, function=function))
    if path.suffix == ".pte":
        try:
            program = delegated(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if program is not None:
            return evaluated("executorch", program)
        shape, run_program = load_executorch(path)
        return Artifact("executorch", shape, run_program, None)
    if path.suffix == ".onnx":
        shape, run_session, metadata = load_onnx(path)
        return Artifact("onnx", shape, run_session, metadata.get("precision"))
    raise ValueError(f"{path} has suffix {path.suffix!r}, expected .mlpackage, .pte or .onnx")


def evaluated(format: str, program: MilProgram) -> Artifact:
    """A Core ML program as a function, operation by operation."""
    if len(program.inputs) != 1:
        names = ", ".join(program.inputs)
        raise ValueError(
            f"the program takes {len(program.inputs)} inputs ({names}), expected one, as in files of this package; "
            "evaluate_mlpackage runs it all the same"
        )
    ((name, shape),) = program.inputs.items()

    def run(x: Tensor) -> list[Tensor]:
        outputs = program({name: x.numpy()})
        return [torch.from_numpy(outputs[key]).float() / (255 if key in program.images else 1) for key in program.outputs]

    pictures, sizes = "images" if program.images else "arrays", tuple(each[0] for each in program.shapes(name))
    return Artifact(format, shape, run, program.metadata.get("precision"), pictures, sizes, in_float16=True)


def verify(
    path: str | os.PathLike[str],
    model: VAE,
    *,
    precision: str | None = None,
    images: Tensor | None = None,
    function: str | None = None,
) -> Verification:
    """Run a saved file on images, or on codes of them, and compare each output with PyTorch's at the same precision.

    A `.mlpackage` is evaluated operation by operation, the others run in their own runtimes. An int8 file is compared with the
    model's own integers in PyTorch.

    Args:
        path: a file that one of the exporters wrote.
        model: what it was exported from.
        precision: of the file; what the file says, or the model is, when None.
        images: uint8, (n, C, H, W), the first 64 are used; 64 of noise when None.
        function: which one of a Core ML package that has several.

    Returns: the figures, all within tolerance.

    Raises:
        ValueError: when an output is over tolerance (names file, output and figure), or the file is of another model.
    """
    artifact = load_artifact(path, function=function)
    if artifact.part == PREDICTIVE and model.theta is None:
        raise ValueError(f"{path} is of another model: it says how sure a Bayesian likelihood is, and the checkpoint has none")
    integers = is_quantized(model) and artifact.part != PREDICTIVE
    precision = precision or artifact.precision or ("int8" if integers else "float32")
    reference = capture(model, artifact.part, precision=precision)
    if artifact.input_shape[1:] != tuple(reference.example.shape[1:]):
        raise ValueError(
            f"{path} is of another model: its input has shape {artifact.input_shape}, the checkpoint's {artifact.part} "
            f"takes {tuple(reference.example.shape)}"
        )
    inputs = inputs_for(artifact.part, model, images)
    limits = functools.partial(allowed, model, reference, inputs, in_float16=artifact.in_float16)
    found = []
    for size in artifact.batch_sizes:
        x = inputs[torch.arange(-(-len(inputs) // size) * size) % len(inputs)]  # as many whole batches as all of them take
        expected = outputs_of(reference, x)
        got = outputs_of(artifact.run, x, size=size)
        found.append(compare(path, reference, got, expected, limits))
    worst, psnr = max(most for most, _ in found), min(noise for _, noise in found)
    facts = (artifact.format, artifact.part, precision, size_of(path), worst, psnr, function)
    rounded = min(noise for _, noise in rounding(model, reference, inputs)) if precision in ROUNDED else None
    return Verification(str(path), *facts, artifact.pictures, artifact.batch_sizes, len(inputs), rounded)


def outputs_of(run: Callable[[Tensor], Sequence[Tensor]], x: Tensor, *, size: int = 1) -> list[Tensor]:
    """What a function makes of so many at a time, put together."""
    return [torch.cat(output) for output in zip(*(run(each) for each in x.split(size)), strict=True)]


def allowed(model: VAE, reference: Capture, inputs: Tensor, *, in_float16: bool) -> list[float]:
    """By how much of its range each output may differ from PyTorch.

    Where a file computes in float16 it is as much as that may cost, where that is more. Between integers a value near the middle
    of two levels is taken for either of them, which costs what rounding to integers does; elsewhere it is twice what PyTorch in
    float16 differs by from PyTorch in float32.
    """
    tolerance = TOLERANCES[reference.precision]
    if not in_float16 or reference.part not in FLOAT16_IN_PYTORCH:
        return [tolerance] * len(reference.outputs)
    if reference.precision == "int8":
        return [max(tolerance, most) for most, _ in rounding(model, reference, inputs)]
    floats = capture(model, reference.part, precision="float16")
    expected = outputs_of(floats, inputs)
    floats.module.half()
    half = outputs_of(floats, inputs.half())
    pairs = zip(reference.outputs, half, expected, strict=True)
    return [max(tolerance, 2 * difference(name, ours.float(), theirs)[0]) for name, ours, theirs in pairs]


def rounding(model: VAE, reference: Capture, inputs: Tensor) -> list[tuple[float, float]]:
    """What each output of a graph with rounded weights, or activations, differs by from the same in float32, and the PSNR."""
    floats = capture(model, reference.part, precision="float32")
    pairs = zip(reference.outputs, outputs_of(reference, inputs), outputs_of(floats, inputs), strict=True)
    return [difference(name, ours, theirs) for name, ours, theirs in pairs]


@dataclass(frozen=True)
class Output:
    """What came out of a package that was run on noise."""

    name: str
    shape: tuple[int, ...]
    type: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name}, {self.shape} {self.type}, from {self.low:.4g} to {self.high:.4g}"


def examine(path: str | os.PathLike[str], *, function: str | None = None, seed: int = 0) -> list[Output]:
    """Run a Core ML package, ours or not, on noise: every operation is known here, and every number that comes out is one.

    Raises:
        ValueError: as `MilProgram.load`, and for an output that has infinite values or NaN.

    Example:
        >>> examine("nowhere.mlpackage")
        Traceback (most recent call last):
            ...
        ValueError: nowhere.mlpackage does not exist, expected a folder saved as a Core ML .mlpackage; check the path
    """
    program = MilProgram.load(Path(path), function=function)
    found = []
    for name, values in program(program.noise(seed=seed)).items():
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"{path}: output {name!r} goes from {low} to {high} on noise: its numbers outgrow their type")
        found.append(Output(name, values.shape, values.dtype.name, low, high))
    return found


def compare(
    path: object, reference: Capture, got: Sequence[Tensor], expected: Sequence[Tensor], limits: Callable[[], Sequence[float]]
) -> tuple[float, float]:
    """The largest difference and the lowest PSNR over the outputs; ValueError when one is over tolerance.

    `limits` says how much each may differ, asked for where one differs by more than the tolerance of its precision.
    """
    if [tuple(output.shape) for output in got] != [tuple(output.shape) for output in expected]:
        theirs, ours = (", ".join(str(tuple(output.shape[1:])) for output in some) for some in (got, expected))
        raise ValueError(
            f"{path} is of another model: its outputs have the shapes {theirs}, expected {ours} "
            f"({', '.join(reference.outputs)}): give the checkpoint that it was exported from"
        )
    worst, lowest = 0.0, HIGHEST_PSNR
    for place, (name, ours, theirs) in enumerate(zip(reference.outputs, got, expected, strict=True)):
        most, psnr = difference(name, ours, theirs)
        if not most <= TOLERANCES[reference.precision] and not most <= (limit := limits()[place]):
            raise ValueError(
                f"{path}: output {name!r} differs from PyTorch by {most:.4g}, {reference.precision} allows {limit:.4g}; "
                "if it is of this checkpoint, choose a finer precision"
            )
        if not psnr >= LEAST_PSNR:
            raise ValueError(
                f"{path}: output {name!r} has a PSNR of {psnr:.1f} dB against PyTorch, at least {LEAST_PSNR:g} are asked for"
            )
        worst, lowest = max(worst, most), min(lowest, psnr)
    return worst, lowest


def difference(name: str, ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest difference between two outputs, in units of their range, and the PSNR."""
    error = (ours - theirs) / (1.0 if name in ("image", "picture") else span_of(theirs))
    most, noise = float(error.abs().max()), float(error.square().mean())
    return most, min(-10 * math.log10(noise), HIGHEST_PSNR) if noise > 0 else HIGHEST_PSNR


def written(
    path: Path,
    write: Callable[[Path], object],
    model: VAE,
    *,
    precision: str | None = None,
    images: Tensor | None = None,
    functions: Sequence[str | None] = (None,),
) -> list[Verification]:
    """Write a file, run each of its functions and compare it with PyTorch; what stood at `path` stays where one fails."""
    with atomic(path) as temporary:
        write(temporary)
        try:
            found = [verify(temporary, model, precision=precision, images=images, function=each) for each in functions]
        except ValueError as error:
            raise ValueError(str(error).replace(str(temporary), str(path))) from error
    return [replace(each, path=str(path)) for each in found]


@torch.no_grad()
def span_of(values: Tensor) -> float:
    """What a difference is a share of: from the lowest to the highest value, and a tenth of the largest where all are alike."""
    return max(float(values.max() - values.min()), 0.1 * float(values.abs().max())) or 1.0


def inputs_for(part: str, model: VAE, images: Tensor | None) -> Tensor:
    """Raw pixels for what takes images, codes drawn from q(z|x) of those pixels for a decoder; the same ones at each call."""
    generator = torch.Generator().manual_seed(0)
    if images is None:
        images = torch.randint(0, 256, (NUM_IMAGES, *model.image_shape), generator=generator, dtype=torch.uint8)
    if tuple(images.shape[1:]) != model.image_shape:
        raise ValueError(f"images have shape {tuple(images.shape[1:])}, the model takes {model.image_shape}")
    pixels = images[:NUM_IMAGES].float()
    if part not in ("decoder", PREDICTIVE):
        return pixels
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return model.posterior(pixels / 255).sample()


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a package."""
    path = Path(path)
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def check_suffix(path: str | os.PathLike[str], suffix: str) -> Path:
    if Path(path).suffix != suffix:
        raise ValueError(f"{path} does not end in {suffix}: give a name that does")
    return Path(path)
