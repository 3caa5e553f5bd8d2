"""`pyro-mvae experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyro_mvae.cli.terminal import Verb, progress_bars, show
from pyro_mvae.experiment import as_text, averages, run_times
from pyro_mvae.experiment import experiment as run
from pyro_mvae.report import filled
from pyro_mvae.side_by_side import cores


@click.command(cls=Verb)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Words that captions must have; may be given again.")
@click.option("--data", default="emoji", show_default=True, metavar="SPEC", help="Images with captions: emoji or shards:GLOB.")
@click.option("--out", default="experiments", show_default=True, help="The folder to make, or to go on in.")
@click.option("--model", default="mvae", show_default=True, help="As in train.")
@click.option("--epochs", default=1000, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--lr", default=2e-3, show_default=True, help="Peak of the one-cycle learning rate.")
@click.option("--latent-dim", default=16, show_default=True)
@click.option("--likelihood", help="As in train.")
@click.option("--theta", help="A Bayesian likelihood: gamma or log_normal precision, or weights of the last layer.")
@click.option("--size", type=int, help="Pixels a side, where the data are resized.")
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", type=int, help="How many prompts are run at a time; by default one for each core.")
def experiment(*, prompts: tuple[str, ...], out: str, processes: int | None, **settings: Any) -> None:
    """Train a model on the images of each prompt, with the tables and figures of the paper's experiments.

    \b
    Example:
      pyro-mvae experiment --prompt face --prompt animal --out experiments
    """
    with progress_bars() as progress:
        done = run(prompts, out=out, processes=cores() if processes is None else processes, progress=progress, **settings)
    for title, table in {"Averages, nats per image": averages(done), "Run times": run_times(done)}.items():
        show(filled(title, *as_text(table)))
    click.echo(f"Everything is in {out}; look at {Path(out) / 'report.html'}")
