"""Run Core ML packages on a Mac, by Core ML itself on each of its units, and say how far they are from the evaluator.

python scripts/core_ml_differences.py PACKAGE.mlpackage ...
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from pyro_mvae.export import MilProgram
from pyro_mvae.export._quiet import import_quietly
from pyro_mvae.export.mil import functions_of

ct = import_quietly("coremltools")
UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
DRAWS = 16


def differences(package: str, *, function: str, several: bool) -> Iterator[tuple[str, str, float, float]]:
    """Units, output, the largest difference over some noise, and the span of the output's values."""
    program = MilProgram.load(package, function=function)
    given = [whole(program, program.noise(seed=seed)) for seed in range(DRAWS)]
    expected = [program(each) for each in given]
    for units in UNITS:
        chosen = {"function_name": function} if several else {}
        model = ct.models.MLModel(package, compute_units=getattr(ct.ComputeUnit, units), **chosen)
        got = [model.predict(as_core_ml_takes(program, each)) for each in given]
        for name in program.outputs:
            ours = np.stack([np.asarray(each[name], np.float32) for each in expected])
            theirs = np.stack([as_tensor(each[name]).reshape(ours.shape[1:]) for each in got])
            yield units, name, float(np.abs(ours - theirs).max()), float(ours.max() - ours.min())


def whole(program: MilProgram, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pixels of images as whole numbers, as pictures have them."""
    return {name: np.floor(values) if name in program.images else values for name, values in given.items()}


def as_core_ml_takes(program: MilProgram, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays, and pictures for inputs that are images."""
    return {name: as_picture(values) if name in program.images else values for name, values in given.items()}


def as_picture(pixels: np.ndarray) -> Image.Image:
    """(1, channels, height, width) of whole numbers from 0 to 255 as a grey or RGB picture."""
    channels_last = pixels[0].transpose(1, 2, 0).astype(np.uint8)
    return Image.fromarray(channels_last[..., 0] if channels_last.shape[-1] == 1 else channels_last)


def as_tensor(output: Any) -> np.ndarray:
    """What came out, channels first where it is a picture."""
    values = np.asarray(output.convert("RGB") if isinstance(output, Image.Image) and output.mode == "RGBA" else output)
    in_colour = isinstance(output, Image.Image) and values.ndim == 3
    return (values.transpose(2, 0, 1) if in_colour else values).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE.mlpackage")
    for package in parser.parse_args().packages:
        names = functions_of(package)
        for function in names:
            for units, output, most, span in differences(package, function=function, several=len(names) > 1):
                print(f"{package}, {function}, {units}: {output} differs by at most {most:.3g}, its values span {span:.3g}")


if __name__ == "__main__":
    main()
