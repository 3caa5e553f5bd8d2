"""`pyro-mvae build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pyro_mvae.build import build as run
from pyro_mvae.cli.terminal import USUAL_EPOCHS, Verb, about, progress_bars, show


@click.command(cls=Verb)
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
@about
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
    if settings["resume"]:
        refuse_with_resume(ctx, allowed={"out", "resume", "as_json"})
    with progress_bars() as progress:
        report = run(progress=progress, **settings)
    if as_json:
        click.echo(report.to_json(), nl=False)
        return
    for table in report.tables():
        show(table)
    if report.data["skipped"]:
        click.echo(f"{len(report.data['skipped'])} files were skipped: {'; '.join(report.data['skipped'][:5])}")
    click.echo(f"Everything is in {settings['out']}; look at {Path(settings['out']) / 'report.html'}")


def refuse_with_resume(ctx: click.Context, *, allowed: set[str]) -> None:
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and name not in allowed]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options} can't be given with --resume, which goes on with the settings the build was started with")
