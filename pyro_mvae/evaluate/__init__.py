"""How good a model is."""

from pyro_mvae.evaluate.likelihood import NLL, negative_log_likelihood

__all__ = ["NLL", "negative_log_likelihood"]
