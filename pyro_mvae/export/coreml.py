"""Core ML packages, for iOS."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_mvae.atomic import atomic
from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.capture import capture
from pyro_mvae.export.verify import Verification, check_suffix, verify_or_remove
from pyro_mvae.models import VAE
from pyro_mvae.nets.palette import BITS, how_palettized
from pyro_mvae.nets.quantized import is_quantized

TARGETS = ("iOS16", "iOS17", "iOS18")
# int8 weights for earlier systems give wrong results on GPU and neural engine
DEFAULT_TARGETS = {"float16": "iOS16", "palettized": "iOS16", "int8": "iOS18"}
# this pass fuses dequantise → reshape → quantise without comparing the two scales
WRONG_PASSES = ("common::int_op_canonicalization",)


def export_coreml(
    model: VAE,
    path: str | os.PathLike[str],
    *,
    part: str = "decoder",
    precision: str = "float16",
    target: str | None = None,
    images: Tensor | None = None,
) -> Verification:
    """Write one part of a model as a Core ML `.mlpackage`, evaluate the saved file and compare it with PyTorch.

    The encoder takes `image`, raw pixels of 0–255, (1, C, H, W), and gives `loc` and `scale`; the decoder takes `z`,
    (1, latent_dim), and gives `image` in [0, 1].

    Args:
        path: ends in `.mlpackage`; written atomically, and taken away again if it fails the comparison.
        precision: "float16"; "palettized", the palettes of a model that has some, float16 for the rest; or "int8": weights and
            activations of a quantised model, weights alone of any other.
        target: the earliest system it runs on; iOS16 for float16 and palettes, iOS18 for int8 when None.
        images: what to compare on, uint8, (n, C, H, W); noise when None.

    Raises:
        ValueError: for a precision that the target can't hold, or a file over tolerance.
        OSError: when the path can't be written.
    """
    path = check_suffix(path, ".mlpackage")
    if precision not in DEFAULT_TARGETS:
        raise ValueError(f"precision is {precision!r}, Core ML packages are written as: {', '.join(DEFAULT_TARGETS)}")
    target = target or DEFAULT_TARGETS[precision]
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, expected one of: {', '.join(TARGETS)}")
    palettes = how_palettized(model) is not None
    if (precision == "palettized") > palettes:
        raise ValueError("the model has no palettes: let it go through Palettize first")
    if precision == "int8" and palettes:
        raise ValueError("a palettised model can't be int8: choose precision palettized or float16")
    if precision == "int8" and target == "iOS16" and is_quantized(model):
        raise ValueError("int8 activations need iOS17 or later: choose target iOS17 or iOS18, or precision float16")
    convert(model, path, part=part, precision=precision, target=target)
    return verify_or_remove(path, model, images=images)


def convert(model: VAE, path: Path, *, part: str, precision: str, target: str) -> None:
    """Convert and save, without comparing."""
    graph = capture(model, part, precision=precision)
    ct = import_quietly("coremltools")
    with quiet():
        passes = ct.PassPipeline.DEFAULT
        passes.remove_passes(WRONG_PASSES)
        package = ct.convert(
            graph.program().run_decompositions({}),
            inputs=[ct.TensorType(name=graph.input, shape=tuple(graph.example.shape))],
            outputs=[ct.TensorType(name=name) for name in graph.outputs],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16,
            pass_pipeline=passes,
            skip_model_load=True,
        )
        if precision == "palettized":
            package = with_tables(package)
        package.user_defined_metadata["precision"] = precision
        package.user_defined_metadata["passes"] = "; ".join(model.passes)
        with atomic(path) as temporary:
            # coremltools insists on the suffix
            named = temporary.with_suffix(path.suffix)
            package.save(str(named))
            settle(named)
            if named != temporary:
                named.rename(temporary)


def settle(package: Path) -> None:
    """Write a saved package's specification and manifest again, so that the same model gives the same bytes.

    Maps are written in the order of their keys, and items are named after what they are instead of by chance.
    """
    manifest_path = package / "Manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    items = {item["path"]: (name, item) for name, item in manifest["itemInfoEntries"].items()}
    names = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, path)) for path, (name, _) in items.items()}
    manifest["itemInfoEntries"] = {names[name]: items[path][1] for path, (name, _) in sorted(items.items())}
    root = manifest["rootModelIdentifier"]
    specification = package / "Data" / next(path for path, (name, _) in items.items() if name == root)
    manifest["rootModelIdentifier"] = names[root]
    model = import_quietly("coremltools").proto.Model_pb2.Model()
    model.ParseFromString(specification.read_bytes())
    specification.write_bytes(model.SerializeToString(deterministic=True))
    manifest_path.write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


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


def patterns(weight: np.ndarray) -> list[int]:
    """The bits of each float16: NumPy's own search for what is unique among them is wrong on some processors."""
    return weight.astype(np.float16).ravel().view(np.uint16).tolist()


def table_of(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that weights have, as many as some of `BITS` can count, and which of them each is."""
    values, places = np.unique(np.array(patterns(weight), np.uint16), return_inverse=True)
    size = next(2**bits for bits in BITS if len(values) <= 2**bits)
    table = np.pad(values, (0, size - len(values)), mode="edge").view(np.float16)
    return table.astype(weight.dtype), places.astype(np.uint8)
