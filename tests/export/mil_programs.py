"""Small MIL programs and packages for tests."""

from typing import Any

import numpy as np
import torch

from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.mil import MilProgram

ct: Any = import_quietly("coremltools")
mb: Any = import_quietly("coremltools.converters.mil").Builder
import_quietly("torch.ao.quantization.fx._decomposed")  # registers torch.ops.quantized_decomposed

FLOAT16, FLOAT32 = ct.precision.FLOAT16, ct.precision.FLOAT32
NO_PASSES = ["common::dead_code_elimination"]


def save(program, path, *, precision=FLOAT32, passes=None, target=ct.target.iOS17, **options):
    """Convert a MIL program or an ExportedProgram, and save it."""
    source = "pytorch" if isinstance(program, torch.export.ExportedProgram) else "milinternal"
    with quiet():
        ct.convert(
            program,
            source=source,
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=target,
            pass_pipeline=passes or ct.PassPipeline.DEFAULT,
            skip_model_load=True,
            **options,
        ).save(str(path))
    return path


def without(*names):
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes(names)
    return passes


def mil(shapes, build, *, target=ct.target.iOS17):
    """A MIL program of float32 inputs `x`, `y`, ... of these shapes."""
    specs = [mb.TensorSpec(shape) for shape in shapes]
    functions = {1: lambda x: build(x), 2: lambda x, y: build(x, y)}
    return mb.program(input_specs=specs, opset_version=target)(functions[len(shapes)])


def export(net, *example):
    with quiet():
        return torch.export.export(net.eval(), example).run_decompositions({})


def run(path, *arrays):
    program = MilProgram.load(path)
    (value,) = program(dict(zip(program.inputs, (np.asarray(array) for array in arrays), strict=True))).values()
    return value
