"""The compression module: passes, model → smaller model."""

from pyro_mvae.compress.miniaturize import BudgetError, Student, miniaturize
from pyro_mvae.compress.passes import PruneChannels, Quantize

__all__ = ["BudgetError", "PruneChannels", "Quantize", "Student", "miniaturize"]
