"""`python -m pyro_mvae`, which is what `torchrun` starts."""

from pyro_mvae.cli import main

main(prog_name="pyro-mvae")
