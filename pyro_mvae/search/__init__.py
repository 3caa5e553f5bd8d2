"""The search for the best small model within a budget."""

from pyro_mvae.search.budget import Budget, BudgetError, Cost, cost_of
from pyro_mvae.search.miniaturize import Miniature, miniaturize
from pyro_mvae.search.student import Student, make_student

__all__ = ["Budget", "BudgetError", "Cost", "Miniature", "Student", "cost_of", "make_student", "miniaturize"]
