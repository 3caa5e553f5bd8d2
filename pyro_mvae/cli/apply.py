"""`pyro-mvae apply`."""

from __future__ import annotations

from typing import Any

import click

from pyro_mvae.apply import PASSES
from pyro_mvae.apply import apply as run
from pyro_mvae.cli.terminal import Verb, progress_bars, show
from pyro_mvae.report import filled


@click.command(cls=Verb)
@click.argument("checkpoint")
@click.argument("out")
@click.option("--pass", "passes", multiple=True, metavar="PASS(…)", help=f"One of {', '.join(PASSES)}; again: the next one.")
@click.option("--data", default="digits", show_default=True, metavar="SPEC", help="As in build: what the model was trained on.")
@click.option("--epochs", default=0, show_default=True, help="Of training, after the last pass; 0 for none.")
@click.option("--batch-size", default=64, show_default=True, help="In training.")
@click.option("--lr", default=1e-3, show_default=True, help="Peak of the one-cycle learning rate, in training.")
@click.option("--seed", default=0, show_default=True)
@click.option("--nll-samples", default=50, show_default=True, help="Importance samples for each test image.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is there.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted in training.")
def apply(*, checkpoint: str, out: str, **settings: Any) -> None:
    """Let the model in CHECKPOINT go through passes, train it on, and write it to OUT, a .safetensors file.

    \b
    Example:
      pyro-mvae apply vae.safetensors half.safetensors --pass "PruneChannels(ratio=0.5)" --epochs 5
      pyro-mvae apply half.safetensors int8.safetensors --pass "Quantize()"
    """
    with progress_bars() as progress:
        before, after = run(checkpoint, out, progress=progress, **settings)
    widths = list(before.channels.values()), list(after.channels.values())  # names change where layers are quantised
    if len(widths[0]) == len(widths[1]) and widths[0] != widths[1]:
        rows = [
            [name, str(was), str(now), f"{1 - now / was:.0%}"] for name, was, now in zip(before.channels, *widths, strict=True)
        ]
        show(filled("Channels", ["layer", "before", "after", "removed"], rows))
    click.echo(
        f"{out}: {after.params:,} parameters of {before.params:,}, {after.macs:,} multiply-adds of {before.macs:,}, "
        f"NLL {after.nll.nats:.2f} nats per test image, {before.nll.nats:.2f} before ({after.nll.num_samples} importance samples)"
    )
