"""The command line: each verb is one library function with the same arguments."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pyro_mvae._version import __version__

PARTS = ("encoder", "decoder", "reconstruct", "anomaly")

USUAL_EPOCHS = "as many as make 1,250 steps, and 8 at least"
FAILED, USAGE, OVER_BUDGET, PROCESS_LOST, INTERRUPTED = 1, 2, 3, 4, 130


def versions() -> str:
    packages = {"torch": "torch", "Pyro": "pyro-ppl", "coremltools": "coremltools"}
    return ", ".join([f"pyro-mvae {__version__}", *(f"{name} {version(package)}" for name, package in packages.items())])


@contextmanager
def progress_bars(*, shown: bool = True):
    """Bars with the time left, and notes such as how long compiling took, on standard error; nothing when that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bars:

        def track(steps: Iterable[Any], description: str, total: int) -> Iterable[Any]:
            return bars.track(steps, total=total, description=description)

        notes = logging.Handler(logging.INFO)
        notes.emit = lambda record: None if bars.disable else bars.console.print(record.getMessage(), style="dim", markup=False)
        logger = logging.getLogger("pyro_mvae")
        logger.addHandler(notes)
        logger.setLevel(logging.INFO)
        try:
            yield track
        finally:
            logger.removeHandler(notes)


class Verb(click.Command):
    """A command whose mistakes end in one line and an exit code, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from pyro_mvae.inference.parallel import ProcessLost
        from pyro_mvae.search import BudgetError

        try:
            return super().invoke(ctx)
        except BudgetError as error:
            fail(error, OVER_BUDGET)
        except KeyboardInterrupt as error:
            fail(f"{str(error) or 'interrupted'}{advice(ctx)}", INTERRUPTED)
        except FloatingPointError as error:
            fail(f"{error}{advice(ctx)}", USAGE)
        except ProcessLost as error:
            fail(f"{error}; start it again with --resume", PROCESS_LOST)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error, USAGE)
        except ValueError as error:
            fail(error, USAGE)


def fail(message: object, code: int) -> None:
    text = " ".join(str(message).split())
    click.echo(f"error: {text}", err=True)
    raise SystemExit(code)


def advice(ctx: click.Context) -> str:
    """How to take up what was interrupted."""
    out = ctx.params.get("out")
    return f"; go on with: pyro-mvae {ctx.info_name} --out {out} --resume" if out and (Path(out) / "build.json").exists() else ""


class Verbs(click.Group):
    """The verbs; what click itself finds wrong ends in one line too."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            fail(f"{error.format_message()} {f'See: {context.command_path} --help' if context else ''}", USAGE)
        except click.Abort:
            fail("interrupted", INTERRUPTED)
        raise SystemExit(0)


@click.group(
    cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message=versions())
@click.pass_context
def main(ctx: click.Context) -> None:
    """Variational autoencoders from a Pyro model/guide pair to a phone."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command(cls=Verb)
@click.option(
    "--data", default="digits", show_default=True, metavar="SPEC", help="digits, emoji, mnist:DIR, folder:DIR or shards:GLOB."
)
@click.option(
    "--model", default="mvae", show_default=True, help="What the student is: mvae (mobile nets), vae, or any other model."
)
@click.option(
    "--budget-kb", default=64.0, show_default=True, help="Size of int8 encoder.pte and decoder.pte together, 1000 bytes each."
)
@click.option("--out", default="build", show_default=True, help="The folder to make.")
@click.option("--epochs", type=int, help=f"Of the teacher, and of the student's longest stage; by default {USUAL_EPOCHS}.")
@click.option("--size", type=int, help="Pixels a side, where the data are resized.")
@click.option("--seed", default=0, show_default=True)
@click.option("--nll-samples", default=50, show_default=True, help="Importance samples for each test image.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier build made in --out.")
@click.option("--resume", is_flag=True, help="Go on with the build in --out, with the settings it was started with.")
@click.option("--json", "as_json", is_flag=True, help="Print only the report, as JSON.")
@click.pass_context
def build(ctx: click.Context, *, as_json: bool, **settings: Any) -> None:
    """Images to a small VAE: train, miniaturise, export, verify, report.

    \b
    Example:
      pyro-mvae build --data digits --budget-kb 64 --out build
    """
    from pyro_mvae.build import build as run

    if settings["resume"]:
        refuse_with_resume(ctx, allowed={"out", "resume", "as_json"})
    with progress_bars() as progress:
        report = run(progress=progress, **settings)
    if as_json:
        click.echo(report.to_json(), nl=False)
        return
    console = Console()
    for table in report.tables():
        console.print(table)
    if report.data["skipped"]:
        console.print(f"{len(report.data['skipped'])} files were skipped: {'; '.join(report.data['skipped'][:5])}")
    console.print(f"Everything is in {settings['out']}; look at {Path(settings['out']) / 'report.html'}")


def refuse_with_resume(ctx: click.Context, *, allowed: set[str]) -> None:
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and name not in allowed]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options} can't be given with --resume, which goes on with the settings the build was started with")


@main.command(cls=Verb)
@click.argument("checkpoint")
@click.option("--data", default="digits", show_default=True, metavar="SPEC", help="As in build.")
@click.option(
    "--model", default="vae", show_default=True, help="vae, vade, gmvae, infovae, betavae, vqvae, svae, vaegan or mvae."
)
@click.option("--epochs", type=int, help=f"By default {USUAL_EPOCHS}.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--lr", default=4e-3, show_default=True, help="Peak of the one-cycle learning rate.")
@click.option("--guide-lr", type=float, help="The same for the guide; by default as --lr.")
@click.option("--optimizer", default="adam", show_default=True, help="adam, adamw, root-adam, rmsprop or sgd.")
@click.option("--guide-optimizer", help="The same for the guide; by default as --optimizer.")
@click.option("--kl-weight", default=1.0, show_default=True, help="β, the weight of the KL.")
@click.option("--clip", type=float, help="Largest norm of the gradient.")
@click.option("--ema", type=float, help="Decay of a moving average of the weights, such as 0.999.")
@click.option("--precision", default="float32", show_default=True, help="float32, or bfloat16 for mixed precision.")
@click.option("--compile", default="auto", show_default=True, help="eager, inductor, or auto, which measures in long runs.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--history", type=click.Path(dir_okay=False), help="A CSV file to write each epoch's row to.")
@click.option("--tensorboard", type=click.Path(file_okay=False), help="A folder to write the history to, for TensorBoard.")
@click.option("--latent-dim", default=16, show_default=True)
@click.option("--likelihood", help="bernoulli, continuous_bernoulli, gaussian or logistic; by default what suits the data.")
@click.option("--theta", help="A Bayesian likelihood: gamma or log_normal precision, or weights of the last layer.")
@click.option("--size", type=int, help="Pixels a side, where the data are resized.")
@click.option("--seed", default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is there.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
def train(*, checkpoint: str, **settings: Any) -> None:
    """Train a model and write CHECKPOINT, a .safetensors file.

    \b
    Example:
      pyro-mvae train vae.safetensors --data digits --epochs 10
      torchrun --nproc_per_node 2 -m pyro_mvae train vae.safetensors
    """
    from pyro_mvae.inference.parallel import joined
    from pyro_mvae.train import train as run

    with joined(settings["device"]) as parallel, progress_bars(shown=parallel.rank == 0) as progress:
        nll = run(checkpoint, progress=progress, **settings)
    if parallel.rank > 0:
        return
    click.echo(f"{checkpoint}: NLL {nll.nats:.2f} nats per test image ({nll.num_samples} importance samples)")


@main.command(cls=Verb)
@click.option("--data", default="digits", show_default=True, metavar="SPEC", help="As in build; accuracies need labels.")
@click.option("--models", default="all", show_default=True, help="Names with commas between, such as vae,mvae.")
@click.option("--seeds", default=3, show_default=True, help="How many times each is trained.")
@click.option("--epochs", type=int, help="Of each; by default as many as make 625 steps of 64 images, and 4 at least.")
@click.option("--out", default="compare", show_default=True, help="The folder to make, or to go on in.")
@click.option("--size", type=int, help="Pixels a side, where the data are resized.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--lr", default=4e-3, show_default=True, help="Peak of the one-cycle learning rate.")
@click.option("--latent-dim", default=16, show_default=True)
@click.option("--nll-samples", default=25, show_default=True, help="Importance samples for each test image.")
@click.option("--num-generated", default=10_000, show_default=True, help="Pictures that the judge reads.")
@click.option("--processes", type=int, help="How many models are trained at a time; by default one for each core.")
def compare(*, out: str, processes: int | None, **settings: Any) -> None:
    """Train and measure the VAEs of the paper's Table 9 on one protocol; called again, it goes on where it stopped.

    \b
    Example:
      pyro-mvae compare --data digits --models vae,mvae --out compare
    """
    from pyro_mvae.compare import compare as run
    from pyro_mvae.report import filled
    from pyro_mvae.side_by_side import cores
    from pyro_mvae.table9 import markdown, shown

    with progress_bars() as progress:
        comparison = run(out=out, processes=cores() if processes is None else processes, progress=progress, **settings)
    console, (header, rows) = Console(), shown(comparison.table)
    columns = [list(cells) for cells in zip(header, *rows, strict=True)]
    upright = filled(f"Table 9 on {settings['data']}", ["", *columns[0][1:]], columns[1:])
    if console.measure(upright, options=console.options.update(width=10_000)).maximum <= console.width:
        console.print(upright)
    else:
        click.echo(markdown(header, rows))
    for name, reason in comparison.failures.items():
        click.echo(f"failed: {name}: {reason}", err=True)
    click.echo(f"Everything is in {out}; look at {Path(out) / 'report.html'}")
    if comparison.failures:
        sys.exit(FAILED)


@main.command(cls=Verb)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Words that captions must have; may be given again.")
@click.option("--data", default="emoji", show_default=True, metavar="SPEC", help="Images with captions: emoji or shards:GLOB.")
@click.option("--out", default="experiments", show_default=True, help="The folder to make, or to go on in.")
@click.option("--model", default="mvae", show_default=True, help="As in train.")
@click.option("--epochs", default=1000, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--lr", default=2e-3, show_default=True, help="Peak of the one-cycle learning rate.")
@click.option("--latent-dim", default=16, show_default=True)
@click.option("--size", type=int, help="Pixels a side, where the data are resized.")
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", type=int, help="How many prompts are run at a time; by default one for each core.")
def experiment(*, prompts: tuple[str, ...], out: str, processes: int | None, **settings: Any) -> None:
    """Train a model on the images of each prompt, with the tables and figures of the paper's experiments.

    \b
    Example:
      pyro-mvae experiment --prompt face --prompt animal --out experiments
    """
    from pyro_mvae.experiment import as_text, averages, run_times
    from pyro_mvae.experiment import experiment as run
    from pyro_mvae.report import filled
    from pyro_mvae.side_by_side import cores

    with progress_bars() as progress:
        done = run(prompts, out=out, processes=cores() if processes is None else processes, progress=progress, **settings)
    console = Console()
    for title, table in {"Averages, nats per image": averages(done), "Run times": run_times(done)}.items():
        console.print(filled(title, *as_text(table)))
    click.echo(f"Everything is in {out}; look at {Path(out) / 'report.html'}")


@main.command(cls=Verb)
@click.argument("checkpoint")
@click.option("--data", default="digits", show_default=True, metavar="SPEC", help="As in build: what the model was trained on.")
@click.option("--budget-kb", type=float, help="Size of int8 encoder.pte and decoder.pte together, 1000 bytes each.")
@click.option("--max-latency-us", type=float, help="µs to encode and decode an image, p50, one thread of this machine.")
@click.option("--max-macs", type=float, help="Multiply-adds to encode and decode an image.")
@click.option("--max-nll-loss", type=float, help="Nats per test image above the model's NLL.")
@click.option("--minutes", default=10.0, show_default=True, help="Of training; measuring comes on top.")
@click.option("--weight-bits", multiple=True, type=int, default=(8,), show_default=True, help="May be given again.")
@click.option("--latent-dim", "latent_dims", multiple=True, type=int, help="May be given again; by default what the model uses.")
@click.option("--nll-samples", default=25, show_default=True, help="Importance samples for each test image.")
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", type=int, help="How many students are trained at a time; by default one for each core.")
@click.option("--out", default="small", show_default=True, help="The folder to make, or to go on in.")
def miniaturize(
    *,
    checkpoint: str,
    data: str,
    budget_kb: float | None,
    max_latency_us: float | None,
    max_macs: float | None,
    max_nll_loss: float | None,
    latent_dims: tuple[int, ...],
    processes: int | None,
    out: str,
    **settings: Any,
) -> None:
    """Search the best int8 student of the model in CHECKPOINT within a budget; called again, it goes on where it stopped.

    \b
    Example:
      pyro-mvae miniaturize vae.safetensors --budget-kb 48 --max-latency-us 200 --out small
    """
    from pyro_mvae import Budget, load_data, load_model
    from pyro_mvae import miniaturize as run
    from pyro_mvae.report import filled
    from pyro_mvae.search.pareto import as_text
    from pyro_mvae.side_by_side import cores
    from pyro_mvae.train import suited

    budget = Budget(kb=budget_kb, macs=max_macs, latency_us=max_latency_us, nll_loss=max_nll_loss)
    teacher = load_model(checkpoint)
    with progress_bars() as progress:
        images = suited(load_data(data, size=teacher.image_shape[1], progress=progress), teacher.config["likelihood"])
        found = run(
            teacher,
            images,
            budget=budget,
            latent_dims=latent_dims or None,
            processes=cores() if processes is None else processes,
            out=out,
            progress=progress,
            **settings,
        )
    Console().print(filled(f"Students of {checkpoint}", *as_text(found.table)))
    click.echo(f"{Path(out) / 'student.safetensors'} is {found.name}; look at {Path(out) / 'pareto.html'}")


def exports(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that exports is given."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace a file that is there."),
        click.option("--part", default="decoder", show_default=True, type=click.Choice([*PARTS])),
        click.argument("out"),
        click.argument("checkpoint"),
    ):
        command = option(command)
    return command


float_or_int8 = click.option("--precision", type=click.Choice(["float32", "int8"]), help="What the model is, when not given.")


@main.command(cls=Verb)
@exports
@click.option("--precision", default="float16", show_default=True, type=click.Choice(["float16", "palettized", "int8"]))
@click.option("--target", type=click.Choice(["iOS16", "iOS17", "iOS18"]), help="Earliest system; iOS18 for int8, else iOS16.")
def export_coreml(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as a Core ML package, OUT.mlpackage, and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-coreml build/student.safetensors decoder.mlpackage --part decoder
    """
    from pyro_mvae import export_coreml as run

    show(exported(run, checkpoint, out, overwrite=overwrite, **settings))


@main.command(cls=Verb)
@exports
@float_or_int8
def export_executorch(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as an ExecuTorch program, OUT.pte, run it and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-executorch build/student.safetensors decoder.pte --part decoder
    """
    from pyro_mvae import export_executorch as run

    show(exported(run, checkpoint, out, overwrite=overwrite, **settings))


@main.command(cls=Verb)
@exports
@float_or_int8
def export_onnx(*, checkpoint: str, out: str, overwrite: bool, **settings: Any) -> None:
    """Write one part of the model in CHECKPOINT as an ONNX model, OUT.onnx, run it and compare it with PyTorch.

    \b
    Example:
      pyro-mvae export-onnx build/student.safetensors decoder.onnx --part decoder
    """
    from pyro_mvae import export_onnx as run

    show(exported(run, checkpoint, out, overwrite=overwrite, **settings))


def exported(run: Callable[..., Any], checkpoint: str, out: str, *, overwrite: bool, **settings: Any) -> Any:
    """What exporting a checkpoint to a file found, which the manifest beside the file says too."""
    from pyro_mvae import load_model
    from pyro_mvae.export.manifest import check_manifest, write_manifest
    from pyro_mvae.report import environment

    path = Path(out)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another name, or --overwrite")
    model = load_model(checkpoint)
    check_manifest(path.parent, model, overwrite=overwrite)
    result = run(model, path, **settings)
    write_manifest(path.parent, model, [(result, None)], versions={"pyro-mvae": __version__, **environment()})
    return result


@main.command(cls=Verb)
@click.argument("artifact")
@click.option("--against", "checkpoint", required=True, metavar="CHECKPOINT", help="What it was exported from.")
@click.option("--data", metavar="SPEC", help="Compare on the test images of this data set; on noise otherwise.")
def verify(*, artifact: str, checkpoint: str, data: str | None) -> None:
    """Run ARTIFACT, a .mlpackage, .pte or .onnx, and compare it with PyTorch.

    \b
    Example:
      pyro-mvae verify build/decoder.pte --against build/student.safetensors --data digits
    """
    from pyro_mvae import load_data, load_model
    from pyro_mvae import verify as run

    model = load_model(checkpoint)
    images = load_data(data, size=model.image_shape[1]).test.images if data else None
    show(run(artifact, model, images=images))


def show(result: Any) -> None:
    click.echo(
        f"{result.path}: {result.part}, {result.precision}, {result.bytes:,} bytes; "
        f"differs from PyTorch by at most {result.max_abs_diff:.1e}, PSNR {result.psnr_db:.1f} dB"
    )


if __name__ == "__main__":
    sys.exit(main())
