"""`pyro-mvae export-coreml`, `export-executorch`, `export-onnx`, and `verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import pyro_mvae
from pyro_mvae._version import __version__
from pyro_mvae.cli.terminal import Verb
from pyro_mvae.export.capture import PARTS, WHOLES
from pyro_mvae.export.manifest import check_manifest, write_manifest
from pyro_mvae.report import environment


def exports(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that exports is given."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace a file that is there."),
        click.option("--part", default="decoder", show_default=True, type=click.Choice([*PARTS, *WHOLES])),
        click.argument("out"),
        click.argument("checkpoint"),
    ):
        command = option(command)
    return command


float_or_int8 = click.option("--precision", type=click.Choice(["float32", "int8"]), help="What the model is, when not given.")


@click.command(cls=Verb)
@exports
@click.option("--precision", default="float16", show_default=True, type=click.Choice(["float16", "palettized", "int8"]))
@click.option("--target", type=click.Choice(["iOS16", "iOS17", "iOS18"]), help="Earliest system; iOS18 for int8, else iOS16.")
def export_coreml(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as a Core ML package, OUT.mlpackage, and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-coreml build/student.safetensors decoder.mlpackage --part decoder
    """
    show(exported(pyro_mvae.export_coreml, checkpoint, out, overwrite=overwrite, **settings))


@click.command(cls=Verb)
@exports
@float_or_int8
def export_executorch(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as an ExecuTorch program, OUT.pte, run it and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-executorch build/student.safetensors decoder.pte --part decoder
    """
    show(exported(pyro_mvae.export_executorch, checkpoint, out, overwrite=overwrite, **settings))


@click.command(cls=Verb)
@exports
@float_or_int8
def export_onnx(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as an ONNX model, OUT.onnx, run it and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-onnx build/student.safetensors decoder.onnx --part decoder
    """
    show(exported(pyro_mvae.export_onnx, checkpoint, out, overwrite=overwrite, **settings))


def exported(run: Callable[..., Any], checkpoint: str, out: str, *, overwrite: bool, **settings: Any) -> Any:
    """What exporting a checkpoint to a file found, which the manifest beside the file says too."""

    path = Path(out)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    model = pyro_mvae.load_model(checkpoint)
    check_manifest(path.parent, model, overwrite=overwrite)
    result = run(model, path, **settings)
    write_manifest(path.parent, model, [(result, None)], versions={"pyro-mvae": __version__, **environment()})
    return result


@click.command(cls=Verb)
@click.argument("artifact")
@click.option("--against", "checkpoint", required=True, metavar="CHECKPOINT", help="What it was exported from.")
@click.option("--data", metavar="SPEC", help="Compare on the test images of this data set; on noise otherwise.")
def verify(*, artifact: str, checkpoint: str, data: str | None) -> None:
    """Run ARTIFACT, a .mlpackage, .pte or .onnx, and compare it with PyTorch.

    \b
    Example:
      pyro-mvae verify build/decoder.pte --against build/student.safetensors --data digits
    """
    model = pyro_mvae.load_model(checkpoint)
    images = pyro_mvae.load_data(data, size=model.image_shape[1]).test.images if data else None
    show(pyro_mvae.verify(artifact, model, images=images))


def show(result: Any) -> None:
    click.echo(
        f"{result.path}: {result.part}, {result.precision}, {result.bytes:,} bytes; "
        f"differs from PyTorch by at most {result.max_abs_diff:.1e}, PSNR {result.psnr_db:.1f} dB"
    )
