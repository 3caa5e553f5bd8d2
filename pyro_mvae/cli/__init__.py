"""The command line: each verb is one library function with the same arguments."""

from __future__ import annotations

from importlib.metadata import version

import click

from pyro_mvae._version import __version__
from pyro_mvae.cli.apply import apply
from pyro_mvae.cli.benchmark import benchmark
from pyro_mvae.cli.build import build
from pyro_mvae.cli.compare import compare
from pyro_mvae.cli.experiment import experiment
from pyro_mvae.cli.export import export_coreml, export_executorch, export_onnx, verify
from pyro_mvae.cli.miniaturize import miniaturize
from pyro_mvae.cli.monitor import monitor
from pyro_mvae.cli.terminal import Verbs
from pyro_mvae.cli.train import train

VERBS = (
    build,
    train,
    compare,
    experiment,
    apply,
    miniaturize,
    export_coreml,
    export_executorch,
    export_onnx,
    verify,
    benchmark,
    monitor,
)


def versions() -> str:
    packages = {"torch": "torch", "Pyro": "pyro-ppl", "coremltools": "coremltools"}
    return ", ".join([f"pyro-mvae {__version__}", *(f"{name} {version(package)}" for name, package in packages.items())])


@click.group(
    cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message=versions())
@click.pass_context
def main(ctx: click.Context) -> None:
    """Variational autoencoders from a Pyro model/guide pair to a phone."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for verb in VERBS:
    main.add_command(verb)
