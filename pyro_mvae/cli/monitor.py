"""`pyro-mvae monitor`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pyro_mvae import load_data, load_model, set_baseline
from pyro_mvae import monitor as run
from pyro_mvae.cli.terminal import CROSSED, Verb, progress_bars, show
from pyro_mvae.export.deployed import FORMATS, entries_of
from pyro_mvae.export.manifest import describe
from pyro_mvae.monitor import PAGE_NAME, beside_bounds
from pyro_mvae.monitor import baseline as baseline_of
from pyro_mvae.report import filled
from pyro_mvae.train import suited


@click.command(cls=Verb)
@click.argument("folder")
@click.option("--data", required=True, metavar="SPEC", help="As in build: what the app sees now.")
@click.option("--split", default="test", show_default=True, help="test, or all where no image was trained on.")
@click.option("--checkpoint", metavar="CHECKPOINT", help="What the files were exported from, where it is not in FOLDER.")
@click.option("--baseline", is_flag=True, help="Set what later readings are held to; --data is what was trained on.")
@click.option(
    "--format", type=click.Choice(FORMATS), help="With --baseline: which files are watched; by default the first it has."
)
def monitor(*, folder: str, data: str, split: str, checkpoint: str | None, baseline: bool, format: str | None) -> None:
    """Measure the exported files in FOLDER on fresh data: NLL, reconstructions, drift of codes, latency.

    Readings are added to monitor.jsonl and drawn in monitor.html; one beyond a bound of manifest.json ends with exit code 4.

    \b
    Example:
      pyro-mvae monitor build --data digits
    """
    if baseline and split != "test":
        raise ValueError(
            f"--split is {split}, and a baseline has both: codes of training images, likelihoods of others; leave it out"
        )
    if format and not baseline:
        raise ValueError(f"--format is {format}, and readings are of the files that the baseline is of: set one with --baseline")
    config = describe(folder)["model"]["config"]
    model = load_model(checkpoint) if checkpoint else None
    with progress_bars() as progress:
        images = suited(load_data(data, size=config["image_shape"][1], progress=progress), config["likelihood"])
        if baseline:
            bounds = set_baseline(folder, images, model=model, format=format, progress=progress)
            click.echo(f"{Path(folder) / 'manifest.json'} has bounds now: {bounds}")
            return
        reading = run(folder, images, model=model, split=split, progress=progress)
    entries = entries_of(Path(folder), describe(folder), format=baseline_of(Path(folder)).get("format"))
    files = " and ".join(str(entry["path"]) for entry in entries.values())
    title = f"{files} in {folder}, {reading.num_images:,} images of {reading.data}"
    show(filled(title, *beside_bounds(reading, baseline_of(Path(folder))["bounds"])))
    click.echo(f"All readings are in {Path(folder) / PAGE_NAME}")
    if reading.crossed:
        click.echo(f"crossed: {', '.join(reading.crossed)}", err=True)
        sys.exit(CROSSED)
