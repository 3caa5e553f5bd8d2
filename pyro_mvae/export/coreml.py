"""Core ML packages, for iOS."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor

from pyro_mvae._version import __version__
from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.capture import MOST, Capture, capture, listed_once
from pyro_mvae.export.manifest import tensors_of
from pyro_mvae.export.packages import DEFAULT_TARGETS, TARGETS, WRONG_PASSES, caution, settle
from pyro_mvae.export.verify import Verification, check_suffix, written
from pyro_mvae.models import VAE
from pyro_mvae.nets.blockwise import block_size
from pyro_mvae.nets.palette import BITS, how_palettized
from pyro_mvae.nets.quantized import is_quantized
from pyro_mvae.numbers import count

logger = logging.getLogger(__name__)

PICTURES = ("arrays", "images")
COMPUTED = "FLOAT16"
"""What is computed in where no integers are."""
COLOURS = {1: "GRAYSCALE", 3: "RGB"}
# these would multiply a palette's values by scales, after which they are many
MERGING_PASSES = ("common::fuse_conv_scale", "common::fuse_conv_batchnorm")
OWN_FIELDS = ("author", "license", "version")
DESCRIPTIONS = {
    "encoder": "Encodes a picture as mean and spread of its code.",
    "decoder": "Decodes a code as the picture that is expected of it.",
    "reconstruct": "Encodes a picture and decodes its code again.",
    "anomaly": "Scores how unusual a picture is.",
    "predictive": "Decodes a code as the picture that is expected of it, and says how sure that is.",
}


def export_coreml(
    model: VAE,
    path: str | os.PathLike[str],
    *,
    part: str = "decoder",
    precision: str = "float16",
    target: str | None = None,
    pictures: str = "arrays",
    batch_sizes: Sequence[int] = (1,),
    images: Tensor | None = None,
    about: Mapping[str, str] | None = None,
) -> Verification:
    """Write one part of a model as a Core ML `.mlpackage`, evaluate the saved file and compare it with PyTorch.

    The encoder takes `image`, raw pixels of 0–255, (1, C, H, W), and gives `loc` and `scale`; the decoder takes `z`,
    (1, latent_dim), and gives `image` in [0, 1], from 0 to 255 where pictures are images.

    Args:
        path: ends in `.mlpackage`; written atomically, and taken away again if it fails the comparison.
        precision: "float16"; "palettized", the palettes of a model that has some, float16 for the rest; "int8", weights and
            activations of a quantised model; "int8_weights" or "int4": weights alone, of a model without integers, rounded after
            training, with a scale for each channel or for each block of 32 inputs at most.
        target: the earliest system it runs on; iOS16 for float16 and palettes, iOS18 for integers when None. 8 bits for an
            earlier one are written with a warning, which the package has too: only its CPU is to be trusted with it.
        pictures: what an app sees them as: "arrays", or "images", grey or RGB of 8 bits, as cameras give and screens take them.
        batch_sizes: how many are computed at a time, 1 among them, sizes that the package knows beforehand: such stay on the
            neural engine. Of arrays; an image is one.
        images: what to compare on, uint8, (n, C, H, W); noise when None.
        about: what Xcode is to show besides shapes, units and what the model went through: "author", "license", "version" in
            their own fields, anything else, such as "training_data" or "nll", among the rest.

    Raises:
        ValueError: for a precision that the model or the target can't have, or a file over tolerance.
        OSError: when the path can't be written.
    """
    path = check_suffix(path, ".mlpackage")
    batch_sizes = check_batches(batch_sizes, pictures)
    if precision not in DEFAULT_TARGETS:
        raise ValueError(f"precision is {precision!r}, Core ML packages are written as: {', '.join(DEFAULT_TARGETS)}")
    target = target or DEFAULT_TARGETS[precision]
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, expected one of: {', '.join(TARGETS)}")
    check_precision(model, precision, target=target)
    how: dict[str, Any] = {"pictures": pictures, "batch_sizes": batch_sizes}
    careful = caution(precision=precision, target=target)
    about = {**(about or {}), **({"caution": careful} if careful else {})}
    if careful:
        logger.warning("%s: %s", path, careful)

    def write(temporary: Path) -> None:
        convert(model, temporary, part=part, precision=precision, target=target, about=about, **how)

    return written(path, write, model, images=images)[0]


def check_precision(model: VAE, precision: str, *, target: str) -> None:
    """ValueError for a precision that a model, or the system that it is to run on, can't have."""
    palettes, quantized = how_palettized(model) is not None, is_quantized(model)
    if precision == "palettized" and not palettes:
        raise ValueError("the model has no palettes: let it go through Palettize first")
    if precision == "int8" and palettes:
        raise ValueError("a palettised model can't be int8: choose precision palettized or float16")
    if precision in ("int8_weights", "int4") and (palettes or quantized):
        raise ValueError(
            f"{precision} is of a model whose weights are floats, and this one's are rounded already: choose another precision"
        )
    if precision == "int4" and target != "iOS18":
        raise ValueError(f"int4 needs iOS18, target is {target}: choose iOS18, or precision palettized")
    if precision == "int8" and target == "iOS16":
        raise ValueError("int8 activations need iOS17 or later: choose target iOS17 or iOS18, or precision float16")


def check_batches(batch_sizes: Any, pictures: str) -> tuple[int, ...]:
    """Sizes of batches in their order; ValueError for what Core ML does not have."""
    if pictures not in PICTURES:
        raise ValueError(f"pictures is {pictures!r}, expected one of: {', '.join(PICTURES)}")
    if not isinstance(batch_sizes, Sequence):
        raise ValueError(f"batch_sizes is {batch_sizes!r}, expected several, such as (1, 8)")
    for size in batch_sizes:
        count(size, "batch_sizes")
    sizes = tuple(sorted({int(size) for size in batch_sizes}))
    if 1 not in sizes or sizes[-1] > MOST:  # what an app has one of, and what is compared here, is a batch of one
        raise ValueError(f"batch_sizes are {list(batch_sizes)}, expected 1 among them, and {MOST} at most")
    if pictures == "images" and sizes != (1,):
        raise ValueError(f"batch_sizes are {list(sizes)}, and an image is one: leave them out, or give pictures arrays")
    return sizes


def export_coreml_functions(
    model: VAE,
    path: str | os.PathLike[str],
    *,
    parts: Sequence[str] = ("encoder", "decoder"),
    precision: str = "float16",
    pictures: str = "arrays",
    batch_sizes: Sequence[int] = (1,),
    images: Tensor | None = None,
    about: Mapping[str, str] | None = None,
) -> list[Verification]:
    """Write several parts of a model as functions of one Core ML package, for iOS 18, and compare each with PyTorch.

    Weights that parts share are kept once: `reconstruct` and `anomaly` beside `encoder` and `decoder` cost little.

    Args:
        path: ends in `.mlpackage`; written atomically, and taken away again if a function fails the comparison.
        parts: the functions' names; an app loads one by `MLModelConfiguration.functionName`, the first when it does not say.
        precision, pictures, batch_sizes, images, about: as `export_coreml`.

    Returns: what comparing each found.

    Raises:
        ValueError: as `export_coreml`, and for fewer than two parts or one twice.
        OSError: when the path can't be written.
    """
    path = check_suffix(path, ".mlpackage")
    if isinstance(parts, str) or len(parts) < 2 or len(set(parts)) < len(parts):
        raise ValueError(f"parts are {parts!r}, expected two or more that differ, such as ('encoder', 'decoder')")
    utils = import_quietly("coremltools.models.utils")
    pipelines = import_quietly("coremltools.converters.mil.mil.passes.pass_pipeline").PassPipeline._PIPELINE_NAME_TO_PASSES
    usual = {"default": [name for name in pipelines["default"] if name not in WRONG_PASSES]}
    with tempfile.TemporaryDirectory() as folder:
        joined = utils.MultiFunctionDescriptor()
        for part in parts:
            single = Path(folder) / f"{part}.mlpackage"
            how: dict[str, Any] = {"pictures": pictures, "batch_sizes": batch_sizes, "images": images, "about": about}
            export_coreml(model, single, part=part, precision=precision, target="iOS18", **how)
            joined.add_function(str(single), src_function_name="main", target_function_name=part)
        joined.default_function_name = parts[0]
        metadata = utils.load_spec(str(Path(folder) / f"{parts[0]}.mlpackage")).description.metadata
        metadata.shortDescription = " ".join(DESCRIPTIONS[part] for part in parts)

        def write(temporary: Path) -> None:
            with quiet(), mock.patch.dict(pipelines, usual):
                utils.save_multifunction(joined, str(temporary))
                settle(temporary, metadata=metadata)

        return written(path, write, model, images=images, functions=parts)


def convert(
    model: VAE,
    path: Path,
    *,
    part: str,
    precision: str,
    target: str,
    pictures: str,
    batch_sizes: tuple[int, ...],
    about: Mapping[str, str],
) -> None:
    """Convert and save, without comparing."""
    graph = capture(model, part, precision=precision, white=255.0 if pictures == "images" else 1.0)
    ct = import_quietly("coremltools")
    as_image = {"color_layout": getattr(ct.colorlayout, COLOURS[model.image_shape[0]])} if pictures == "images" else None
    with quiet(), listed_once():
        passes = ct.PassPipeline.DEFAULT
        passes.remove_passes((*WRONG_PASSES, *(MERGING_PASSES if precision == "palettized" else ())))
        package = ct.convert(
            graph.program(any_batch=len(batch_sizes) > 1).run_decompositions({}),
            inputs=[described(graph.input, as_image, shape=shape_of(graph, batch_sizes))],
            outputs=[described(name, as_image) for name in graph.outputs],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision[COMPUTED],
            pass_pipeline=passes,
            skip_model_load=True,
        )
        if precision == "palettized":
            package = with_tables(package)
        if precision == "int4":
            package = with_blocks(package)
        label(package, model, graph, about, pictures=pictures)
        package.save(str(path))
        settle(path)


def shape_of(graph: Capture, batch_sizes: tuple[int, ...]) -> Any:
    """The shape of a graph's input for batches of these sizes, as coremltools has it."""
    shapes = [(size, *graph.example.shape[1:]) for size in batch_sizes]
    return shapes[0] if len(shapes) == 1 else import_quietly("coremltools").EnumeratedShapes(shapes=shapes, default=shapes[0])


def described(name: str, as_image: Mapping[str, Any] | None, **more: Any) -> Any:
    """A tensor that goes into a package or comes out, as coremltools has it."""
    ct = import_quietly("coremltools")
    if as_image is not None and name in ("image", "picture"):
        return ct.ImageType(name=name, **as_image, **more)
    return ct.TensorType(name=name, **more)


def label(package: Any, model: VAE, graph: Capture, about: Mapping[str, str], *, pictures: str) -> None:
    """Write what Xcode shows: of each tensor its meaning, shape and range, and where the model comes from."""
    package.short_description = f"{DESCRIPTIONS[graph.part]} {type(model).__name__}, {graph.precision}."
    facts = {"precision": graph.precision, "passes": "; ".join(model.passes), "pyro_mvae": __version__}
    for name, text in {**about, **facts}.items():
        if name in OWN_FIELDS:
            setattr(package, name, str(text))
        else:
            package.user_defined_metadata[name] = str(text)
    tensors = tensors_of(model, graph, type="float16", pictures=pictures)
    for listed, descriptions in (("inputs", package.input_description), ("outputs", package.output_description)):
        for tensor in tensors[listed]:
            descriptions[tensor["name"]] = sentence(tensor)


def sentence(tensor: Mapping[str, Any]) -> str:
    """What a manifest says of a tensor, for people.

    Example:
        >>> sentence({"meaning": "pixels", "shape": [1, 3, 8, 8], "type": "float16", "range": [0, 255]})
        'pixels; (1, 3, 8, 8) float16, from 0 to 255'
    """
    low, high = tensor["range"] or (None, None)
    span = "" if low is None else f", from {low} on" if high is None else f", from {low} to {high}"
    return f"{tensor['meaning']}; ({', '.join(map(str, tensor['shape']))}) {tensor['type']}{span}"


def with_tables(package: Any) -> Any:
    """The package with a table and indices in the place of weights that are a few values: nothing is rounded."""
    optimize = import_quietly("coremltools.optimize.coreml")
    lossless = optimize.OpPalettizerConfig(mode="custom", lut_function=table_of, weight_threshold=0)
    names = [
        name
        for name, weight in optimize.get_weights_metadata(package, 0).items()
        if len(set(patterns(weight.val))) <= 2 ** BITS[-1]
    ]
    return optimize.palettize_weights(package, optimize.OptimizationConfig(op_name_configs=dict.fromkeys(names, lossless)))


def with_blocks(package: Any) -> Any:
    """The package with integers of 4 bits and scales in the place of convolutions' weights, which are rounded so already."""
    optimize = import_quietly("coremltools.optimize.coreml")
    configs = {}
    for name, weight in optimize.get_weights_metadata(package, 0).items():
        kinds = {child.op_type for child in weight.child_ops}
        if kinds <= {"conv", "conv_transpose"} and weight.val.ndim == 4:
            size = block_size(weight.val.shape[0 if "conv_transpose" in kinds else 1])
            how: dict[str, Any] = {"mode": "linear_symmetric", "dtype": "int4", "granularity": "per_block", "weight_threshold": 0}
            configs[name] = optimize.OpLinearQuantizerConfig(block_size=size, **how)
    return optimize.linear_quantize_weights(package, optimize.OptimizationConfig(op_name_configs=configs))


def patterns(weight: np.ndarray) -> list[int]:
    """The bits of each float16: NumPy's own search for what is unique among them is wrong on some processors."""
    return weight.astype(np.float16).ravel().view(np.uint16).tolist()


def table_of(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that weights have, as many as some of `BITS` can count, and which of them each is."""
    values, places = np.unique(np.array(patterns(weight), np.uint16), return_inverse=True)
    size = next(2**bits for bits in BITS if len(values) <= 2**bits)
    table = np.pad(values, (0, size - len(values)), mode="edge").view(np.float16)
    return table.astype(weight.dtype), places.astype(np.uint8)
