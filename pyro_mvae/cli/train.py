"""`pyro-mvae train`."""

from __future__ import annotations

from typing import Any

import click

from pyro_mvae.cli.terminal import USUAL_EPOCHS, Verb, progress_bars
from pyro_mvae.inference.parallel import joined
from pyro_mvae.train import train as run


@click.command(cls=Verb)
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
@click.option("--compile", default="auto", show_default=True, help="pyro, eager, inductor, or auto, by how long a run is.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--history", type=click.Path(dir_okay=False), help="A CSV file to write each epoch's row to.")
@click.option("--tensorboard", type=click.Path(file_okay=False), help="A folder to write the history to, for TensorBoard.")
@click.option("--latent-dim", default=16, show_default=True)
@click.option("--net", help="conv, mobile or mlp; by default what is usual for the model.")
@click.option("--num-clusters", type=int, help="Of vade, gmvae or mvae; by default ten, none for mvae.")
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
    with joined(settings["device"]) as parallel, progress_bars(shown=parallel.rank == 0) as progress:
        nll = run(checkpoint, progress=progress, **settings)
    if parallel.rank > 0:
        return
    click.echo(f"{checkpoint}: NLL {nll.nats:.2f} nats per test image ({nll.num_samples} importance samples)")
