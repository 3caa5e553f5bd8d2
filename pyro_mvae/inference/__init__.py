"""How a Pyro pair is fitted."""

from pyro_mvae.inference.asvi import Interrupted, fit
from pyro_mvae.inference.compiled import compile_elbo, compile_gradients, compile_objective
from pyro_mvae.inference.history import write_csv, write_tensorboard
from pyro_mvae.inference.objective import Objective, kl_weighted
from pyro_mvae.inference.optimizers import RootAdam

__all__ = [
    "Interrupted",
    "Objective",
    "RootAdam",
    "compile_elbo",
    "compile_gradients",
    "compile_objective",
    "fit",
    "kl_weighted",
    "write_csv",
    "write_tensorboard",
]
