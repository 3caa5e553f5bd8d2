"""Which students are to be trained: laid out within the budget, and their files measured before any is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyro_mvae.atomic import write_text
from pyro_mvae.compress.quantize import Quantize
from pyro_mvae.data.progress import Track
from pyro_mvae.models import VAE
from pyro_mvae.search.budget import Budget, Cost, cost_of
from pyro_mvae.search.plans import Plan, smaller
from pyro_mvae.search.student import calibrated


def laid_out(
    plans: Sequence[Plan], teachers: dict[int, VAE], budget: Budget, out: Path, *, most: int | None = None, progress: Track
) -> dict[Plan, Cost]:
    """The first plans that are within the budget, made smaller where they have to be, and what their files cost, measured.

    Args:
        most: how many there is time to train; all when None.
    """
    known, found = known_costs(out), {}

    def cost(plan: Plan) -> Cost:
        if plan.name not in known:
            student = plan.student(teachers[plan.latent_dim])
            measured = cost_of(calibrated(Quantize(weight_bits=plan.weight_bits)(student)))
            known[plan.name] = asdict(measured)
            write_text(out / "costs.json", json.dumps(known, indent=1) + "\n")
        return Cost(**known[plan.name])

    for plan in progress(plans, "Measuring costs", len(plans)):
        fitting = within(plan, budget, cost)
        if fitting is not None:
            found[fitting] = cost(fitting)
        if len(found) == most:
            break
    return found


def once_laid_out(out: Path, begun: Callable[[], dict[Plan, Cost]]) -> dict[Plan, Cost]:
    """The students that a search begins with, as it began: kept in `students.json`, for whoever goes on, on any machine."""
    path = out / "students.json"
    if path.is_file():
        known = known_costs(out)
        plans = [Plan(**{**each, "widths": tuple(each["widths"])}) for each in json.loads(path.read_text(encoding="utf-8"))]
        return {plan: Cost(**known[plan.name]) for plan in plans}
    costs = begun()
    if costs:
        write_text(path, json.dumps([asdict(plan) for plan in costs]) + "\n")
    return costs


def known_costs(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "costs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def within(plan: Plan, budget: Budget, cost: Callable[[Plan], Cost]) -> Plan | None:
    """The plan, made smaller until its files are measured to be within the budget; None if they never are."""
    current: Plan | None = plan
    while current is not None and budget.over(vars(cost(current))):
        current = smaller(current)
    return current
