"""What a budget buys: students that nothing cheaper beats, as a table and as a page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_mvae import plots
from pyro_mvae.atomic import write_text
from pyro_mvae.report import PAGE, html_picture, html_table
from pyro_mvae.search.budget import Budget, shown

AXES = {"kb": "KB of both .pte", "latency_us": "µs to encode and decode, p50", "macs": "multiply-adds"}


def front(table: pd.DataFrame, columns: Sequence[str]) -> list[bool]:
    """Which rows no other row is as good as in all columns and better in one; less is better.

    Example:
        >>> front(pd.DataFrame({"kb": [1.0, 2.0, 2.0], "nll": [9.0, 8.0, 9.5]}), ["kb", "nll"])
        [True, True, False]
    """
    values = table[list(columns)].to_numpy(dtype=float)
    return [not bool(((values <= row).all(1) & (values < row).any(1)).any()) for row in values]


def write_pareto(table: pd.DataFrame, budget: Budget, out: Path, *, lost: Mapping[str, str]) -> None:
    """Write `pareto.csv` and `pareto.html`: each student with its number, against each cost.

    Args:
        lost: why students came to no numbers in some round, for the page, by their names.

    Raises:
        OSError: when the folder can't be written.
    """
    write_text(out / "pareto.csv", table.to_csv(index=False))
    write_text(out / "pareto.html", page(table, budget, lost))


def page(table: pd.DataFrame, budget: Budget, lost: Mapping[str, str]) -> str:
    """A page that needs no other file."""
    pictures = "".join(
        html_picture(
            f"NLL of held-out images against {label}", plots.trade(table, axis, label=label, bound=getattr(budget, axis))
        )
        for axis, label in AXES.items()
    )
    asked = ", ".join(shown(axis, bound) for axis, bound in budget.given().items())
    note = (
        "Numbers are those of the table's rows; the front is drawn as a line, the student chosen as a star, the budget dotted. "
        "Hollow: students that were left behind after fewer rounds, and would be better had they been trained on. "
        "held_out: NLL of training images that no student saw, nats; nll: on test images, of the front alone."
    )
    header, rows = as_text(table)
    facts = [("budget", asked), *((f"lost: {name}", reason) for name, reason in lost.items())]
    return PAGE.format(
        title="pyro-mvae: students within a budget",
        tables=html_table(header, rows),
        note=note,
        pictures=pictures,
        facts="".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd>" for name, fact in facts),
    )


def as_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    columns = ["name", *AXES, "rounds", "epochs", "rounded", "held_out", "nll", "nll_loss", "front", "within", "chosen"]

    def cell(value: object) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else ""
        if isinstance(value, float):
            return "–" if np.isnan(value) else f"{value:,.2f}"
        return f"{value:,}" if isinstance(value, int | np.integer) else str(value)

    rows = [[str(i + 1), *(cell(table[column].iloc[i]) for column in columns)] for i in range(len(table))]
    return ["", *columns], rows
