"""`pyro-mvae miniaturize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import Tensor

from pyro_mvae import VAE, Budget, document, export_executorch, load_model
from pyro_mvae import miniaturize as run
from pyro_mvae.cli.terminal import Verb, progress_bars, show
from pyro_mvae.export.capture import PARTS
from pyro_mvae.inference.precision import PRECISIONS
from pyro_mvae.report import filled
from pyro_mvae.search.budget import KB, shown
from pyro_mvae.search.miniaturize import FASTEST
from pyro_mvae.search.pareto import as_text
from pyro_mvae.side_by_side import cores
from pyro_mvae.train import data_for


@click.command(cls=Verb)
@click.argument("checkpoint")
@click.option("--data", default="digits", show_default=True, metavar="SPEC", help="As in build: what the model was trained on.")
@click.option("--budget-kb", type=float, help="Size of int8 encoder.pte and decoder.pte together, 1000 bytes each.")
@click.option("--max-latency-us", type=float, help="µs to encode and decode an image, p50, one thread of this machine.")
@click.option("--max-macs", type=float, help="Multiply-adds to encode and decode an image.")
@click.option("--max-nll-loss", type=float, help="Nats per test image above the model's NLL.")
@click.option("--minutes", type=float, help="Of training, in all; measuring comes on top. By default 10, or what --out had.")
@click.option(
    "--weight-bits",
    multiple=True,
    type=int,
    default=(8,),
    show_default=True,
    help="May be given again; a .pte has a byte a weight for all.",
)
@click.option("--latent-dim", "latent_dims", multiple=True, type=int, help="May be given again; by default what the model uses.")
@click.option("--nll-samples", default=25, show_default=True, help="Importance samples for each test image.")
@click.option("--distill", default=1.0, show_default=True, help="λ of distillation (19); 0 for none.")
@click.option("--importance-samples", default=1, show_default=True, help="Of the bound that students are trained on.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice([*PRECISIONS, FASTEST]),
    help="What students are trained in until rounding is, in float32; fastest: whichever each is faster in.",
)
@click.option("--seed", default=0, show_default=True, help="That of train: of the split into training and test images too.")
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

    Called again with more --minutes it trains the best of them on.

    \b
    Example:
      pyro-mvae miniaturize vae.safetensors --budget-kb 48 --max-latency-us 200 --out small
    """
    budget = Budget(kb=budget_kb, macs=max_macs, latency_us=max_latency_us, nll_loss=max_nll_loss)
    teacher = load_model(checkpoint)
    with progress_bars() as progress:
        images = data_for(teacher, data, seed=settings["seed"], progress=progress)
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
        measured = phone_files(found.model, Path(out), images.test.images)
    show(filled(f"Students of {checkpoint}", *as_text(found.table)))
    reached = {**found.table[found.table["chosen"]].iloc[0], **measured}
    figures = ", ".join(f"{shown(axis, float(reached[axis]))} of {shown(axis, bound)}" for axis, bound in budget.given().items())
    click.echo(f"{found.name}: {figures}")
    for axis, value in budget.over(measured).items():
        click.echo(f"Its files, measured at last, are over the budget: {shown(axis, value)}. Ask for less than the phone allows.")
    click.echo(f"Everything is in {out}: student.safetensors, encoder.pte and decoder.pte with README.md; look at pareto.html")


def phone_files(student: VAE, out: Path, images: Tensor) -> dict[str, float]:
    """Write and verify the student's two files, with what lies beside such files; what they weigh and take, as in a `Cost`."""
    files = [export_executorch(student, out / f"{part}.pte", part=part, images=images) for part in PARTS]
    latencies = document(out, student, files, images=images, overwrite=True)
    microseconds = sum(timed["p50_us"] for timed in latencies.values() if timed is not None)
    return {"kb": sum(each.bytes for each in files) / KB, "latency_us": round(microseconds, 1)}
