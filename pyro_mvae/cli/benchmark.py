"""`pyro-mvae benchmark`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pyro_mvae import load_model
from pyro_mvae.cli.terminal import CROSSED, Verb, progress_bars, show
from pyro_mvae.latency import as_text, check_comparable, checkpoints, only_in_one, read_benchmark, regressions
from pyro_mvae.latency import benchmark as run
from pyro_mvae.report import filled


@click.command(cls=Verb)
@click.argument("folder")
@click.option(
    "--model", "models", multiple=True, metavar="NAME=CHECKPOINT", help="A peer; by default those of a build in FOLDER."
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Time models in other runtimes too.")
@click.option("--runs", default=1024, show_default=True, help="Calls of each, at least.")
@click.option("--seconds", default=5.0, show_default=True, help="Of each, at least.")
@click.option("--compare", "before", metavar="OTHER.json", help="Mark what became slower since; ends with exit code 4 then.")
@click.option("--out", metavar="FILE", help="The JSON to write; by default benchmark.json in FOLDER.")
def benchmark(
    *, folder: str, models: tuple[str, ...], peers: bool, runs: int, seconds: float, before: str | None, out: str | None
) -> None:
    """Time the exported files in FOLDER on this machine, beside its peak and beside other runtimes.

    \b
    Example:
      pyro-mvae benchmark build --seconds 5
    """
    path = Path(out) if out else Path(folder) / "benchmark.json"
    other = read_benchmark(before) if before else None
    if before and path.resolve() == Path(before).resolve():
        raise ValueError(f"{path} is what is to be compared with, and would be replaced: give --out another name, or move it")
    if other:
        check_comparable(other)
    if models and not peers:
        raise ValueError("--model gives a peer, and --no-peers leaves peers out: give one of them")
    paths = checkpoints(folder, models) if peers else {}
    with progress_bars() as progress:
        named = {name: load_model(path).eval() for name, path in paths.items()}
        found = run(folder, models=named, runs=runs, seconds=seconds, out=out, progress=progress)
    slower = regressions(found, other) if other else {}
    show(filled("On this machine, one thread: a proxy, no phone's latency", *as_text(found, slower)))
    click.echo(f"Everything is in {path}")
    for what, names in (only_in_one(found, other) if other else {}).items():
        for name in names:
            click.echo(f"{what}, not compared: {name}", err=True)
    for name, ratio in slower.items():
        click.echo(f"slower: {name}: {ratio:.2f} times what it took", err=True)
    if slower:
        sys.exit(CROSSED)
