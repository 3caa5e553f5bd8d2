"""How a Pyro pair is fitted."""

from pyro_mvae.inference.asvi import Interrupted, fit
from pyro_mvae.inference.compiled import compile_elbo, compile_gradients, compile_objective
from pyro_mvae.inference.objective import Miniaturization, Objective

__all__ = ["Interrupted", "Miniaturization", "Objective", "compile_elbo", "compile_gradients", "compile_objective", "fit"]
