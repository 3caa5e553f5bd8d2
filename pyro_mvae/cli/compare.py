"""`pyro-mvae compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pyro_mvae.cli.terminal import FAILED, Verb, full_width, progress_bars
from pyro_mvae.compare import compare as run
from pyro_mvae.report import filled
from pyro_mvae.side_by_side import cores
from pyro_mvae.table9 import markdown, shown


@click.command(cls=Verb)
@click.option("--data", default="digits", show_default=True, metavar="SPEC", help="As in build; accuracies need labels.")
@click.option("--models", default="all", show_default=True, help="Names with commas between, such as vae,mvae.")
@click.option("--seeds", default=3, show_default=True, help="How many times each is trained.")
@click.option("--epochs", type=int, help="Of each; by default as many as make about 420 steps of 64 images, and 3 at least.")
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
    with progress_bars(said="pyro_mvae.compare") as progress:
        comparison = run(out=out, processes=cores() if processes is None else processes, progress=progress, **settings)
    console, (header, rows) = Console(), shown(comparison.table)
    columns = [list(cells) for cells in zip(header, *rows, strict=True)]
    upright = filled(f"Table 9 on {settings['data']}", ["", *columns[0][1:]], columns[1:])
    if full_width(upright, console) <= console.width:
        console.print(upright)
    else:
        click.echo(markdown(header, rows))
    for name, reason in comparison.failures.items():
        click.echo(f"failed: {name}: {reason}", err=True)
    click.echo(f"Everything is in {out}; look at {Path(out) / 'report.html'}")
    if comparison.failures:
        sys.exit(FAILED)
