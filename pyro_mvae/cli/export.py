"""`pyro-mvae export-coreml`, `export-executorch`, `export-onnx`, and `verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import pyro_mvae
from pyro_mvae.cli.terminal import Verb, about
from pyro_mvae.export.capture import EVERY_PART
from pyro_mvae.export.coreml import PICTURES
from pyro_mvae.export.delegation import delegation
from pyro_mvae.export.executorch import FLOATS
from pyro_mvae.export.manifest import check_manifest, checked_precision
from pyro_mvae.export.mil import functions_of
from pyro_mvae.export.packages import DEFAULT_TARGETS, TARGETS
from pyro_mvae.export.verify import TOLERANCES, examine
from pyro_mvae.origin import exported_nll, origin
from pyro_mvae.train import data_for


def exports(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that exports is given."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace a file that is there."),
        click.option("--seed", type=int, help="With --data: that of train, which split a folder's images; by default 0."),
        click.option("--data", metavar="SPEC", help="What it was trained on: compare and time on its test images, not on noise."),
        click.argument("out"),
        click.argument("checkpoint"),
    ):
        command = option(command)
    return command


PART = {"show_default": True, "type": click.Choice(EVERY_PART)}
one_part = click.option("--part", default="decoder", **PART)
some_parts = click.option("--part", "parts", default=["decoder"], multiple=True, help="Given again: functions of one.", **PART)
float_or_int8 = click.option("--precision", type=click.Choice(["float32", "int8"]), help="What the model is, when not given.")


@click.command(cls=Verb)
@exports
@some_parts
@click.option("--precision", default="float16", show_default=True, type=click.Choice(list(DEFAULT_TARGETS)))
@click.option("--target", type=click.Choice(list(TARGETS)), help="Earliest system; iOS18 for integers, else iOS16.")
@click.option("--pictures", default=PICTURES[0], show_default=True, type=click.Choice(PICTURES), help="How an app sees them.")
@click.option("--batch", "batch_sizes", default=[1], multiple=True, type=int, help="How many at a time; again: 1 and others.")
@about
def export_coreml(
    *,
    checkpoint: str,
    out: str,
    overwrite: bool,
    parts: tuple[str, ...],
    target: str | None,
    **settings: Any,
) -> None:
    """Write parts of the model in CHECKPOINT as a Core ML package, OUT.mlpackage, and compare it with PyTorch.

    Several parts become functions of one package, for iOS18.

    \b
    Example:
      pyro-mvae export-coreml build/student.safetensors decoder.mlpackage --part decoder
    """
    if len(parts) == 1:
        run, how = pyro_mvae.export_coreml, {"part": parts[0], "target": target}
    elif target in (None, "iOS18"):
        run, how = pyro_mvae.export_coreml_functions, {"parts": parts}
    else:
        raise ValueError(f"--target is {target}, several functions in one package need iOS18: leave it out, or give one --part")
    exported(run, checkpoint, out, overwrite=overwrite, **how, **settings)


@click.command(cls=Verb)
@exports
@one_part
@click.option("--precision", type=click.Choice(["float32", "float16", "int8"]), help="What the model is, when not given.")
@click.option("--backend", default="xnnpack", show_default=True, type=click.Choice(list(FLOATS)), help="What runs it.")
def export_executorch(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as an ExecuTorch program, OUT.pte, run it and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-executorch build/student.safetensors decoder.pte --part decoder
    """
    exported(pyro_mvae.export_executorch, checkpoint, out, overwrite=overwrite, **settings)


@click.command(cls=Verb)
@exports
@one_part
@float_or_int8
def export_onnx(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as an ONNX model, OUT.onnx, run it and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-onnx build/student.safetensors decoder.onnx --part decoder
    """
    exported(pyro_mvae.export_onnx, checkpoint, out, overwrite=overwrite, **settings)


def exported(
    run: Callable[..., Any], checkpoint: str, out: str, *, overwrite: bool, data: str | None, seed: int | None, **settings: Any
) -> None:
    """Export a checkpoint to a file, and show what comparing it found, which the manifest beside the file says too."""

    path = Path(out)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    model = pyro_mvae.load_model(checkpoint)
    check_manifest(path.parent, model, overwrite=overwrite)
    if seed is not None and data is None:
        raise ValueError("--seed is for splitting --data: give both, or neither")
    known = data_for(model, data, seed=seed or 0) if data else None
    if known and "about" in settings:
        nll = exported_nll(model, known, precision=settings["precision"], seed=seed or 0)
        settings["about"] = {**origin(known, nll), **settings["about"]}
    images = known.test.images if known else None
    found = run(model, path, images=images, **settings)
    found = found if isinstance(found, list) else [found]
    pyro_mvae.document(path.parent, model, found, images=images, overwrite=overwrite)
    for each in found:
        show(each)
        if each.format == "executorch" and (warning := in_pieces(each.path)):
            click.echo(warning, err=True)


def in_pieces(path: str) -> str | None:
    """What is to be said of a program that its backend does not run in one piece."""
    found = delegation(Path(path).read_bytes())
    if found.pieces == 1 and not found.outside:
        return None
    outside = f"; outside of them: {', '.join(found.outside)}" if found.outside else ""
    return f"{path}: in {found.pieces} pieces for {found.backend}, best is one{outside}: slower than it might be"


@click.command(cls=Verb)
@click.argument("artifact")
@click.option("--against", "checkpoint", metavar="CHECKPOINT", help="What it was exported from.")
@click.option("--data", metavar="SPEC", help="Compare on the test images of this data set; on noise otherwise.")
@click.option(
    "--precision", type=click.Choice(list(TOLERANCES)), help="By default what the manifest beside it, or the file, says."
)
def verify(*, artifact: str, checkpoint: str | None, data: str | None, precision: str | None) -> None:
    """Run ARTIFACT, a .mlpackage, .pte or .onnx, and compare it with PyTorch.

    Without --against a Core ML package, which need not be one of ours, is run on noise: whether it can be, and what comes out.

    \b
    Example:
      pyro-mvae verify build/decoder.pte --against build/student.safetensors --data digits
      pyro-mvae verify somebody-elses.mlpackage
    """
    if checkpoint is None and (data or precision):
        raise ValueError(f"{'--data' if data else '--precision'} is for comparing: give --against CHECKPOINT too")
    package = Path(artifact).suffix == ".mlpackage"
    names = functions_of(artifact) if package else ()
    if checkpoint is None:
        if not package:
            raise ValueError(f"{artifact} is no .mlpackage: give --against CHECKPOINT, what it was exported from")
        for name in names:
            for output in examine(artifact, function=name):
                click.echo(f"{artifact}, {name}: {output}")
        return
    model = pyro_mvae.load_model(checkpoint)
    noted = checked_precision(artifact, model)
    images = data_for(model, data).test.images if data else None
    for name in names if len(names) > 1 else (None,):
        show(pyro_mvae.verify(artifact, model, precision=precision or noted, images=images, function=name))


def show(result: pyro_mvae.Verification) -> None:
    rounded = result.rounding_psnr_db
    costs = "" if rounded is None else f"; rounding its weights leaves {rounded:.1f} dB against float32"
    click.echo(
        f"{result.path}: {result.part}, {result.precision}, {result.bytes:,} bytes; "
        f"differs from PyTorch by at most {result.max_abs_diff:.1e}, PSNR {result.psnr_db:.1f} dB{costs}"
    )
