"""Table 9 of the paper, with measured figures beside its own: as CSV, as Markdown, and as a page with pictures."""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_mvae import plots
from pyro_mvae.atomic import write_text
from pyro_mvae.costs import Cost
from pyro_mvae.data import Data
from pyro_mvae.evaluate.cost import num_params
from pyro_mvae.evaluate.kid import NAME as KID
from pyro_mvae.models import VAE, model_class
from pyro_mvae.report import PAGE, html_picture, html_table

# Accuracy of generated image in %, and seconds an epoch, as the paper's Table 9 has them; it does not define the accuracy.
PAPER: dict[str, tuple[float, float]] = {
    "vae": (75.3, 2),
    "vade": (92.5, 58),
    "gmvae": (94.7, 43),
    "infovae": (65.9, 39),
    "betavae": (86.1, 17),
    "vqvae": (85.6, 5),
    "svae": (78.3, 58),
    "vaegan": (61.7, 43),
    "mvae": (97.2, 2),
}
ACCURACIES = {
    "clustering accuracy": "clustering %",
    "k-NN accuracy, 100 labels": "k-NN 100 %",
    "generation accuracy": "generation %",
}
FIGURES = {**ACCURACIES, "CAS": "CAS %", "NLL": "NLL, nats", KID: "KID", "start": "start s"}


def table9(
    trained: Mapping[str, VAE],
    figures: Mapping[str, Mapping[str, Sequence[float]]],
    costs: Mapping[str, Cost],
    *,
    missing: Sequence[str] = (),
) -> pd.DataFrame:
    """A row a model: means and standard deviations over seeds, what it costs, and the paper's figures.

    Args:
        trained: models by the names that the command line has for them.
        figures: for each, the values over seeds of each measurement.
        costs: of those that could be timed.
        missing: models that could not be trained: their rows hold the paper's figures alone.
    """
    rows = []
    for name in [*trained, *missing]:
        found, model = figures.get(name, {}), trained.get(name)
        row: dict[str, Any] = {"model": model_class(name).__name__, "seeds": len(next(iter(found.values()), ()))}
        for figure in FIGURES:
            values = found.get(figure, [])
            row[figure] = round(statistics.fmean(values), 4) if values else None
            row[f"{figure}, sd"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
        cost = costs.get(name)
        row |= {"s/epoch": cost and round(cost.epoch_seconds, 3), "parameters": model and num_params(model)}
        row |= {"int8 KB": cost and cost.int8_kb, "p50 µs": cost and cost.p50_us}
        row |= dict(zip(("paper: accuracy %", "paper: s/epoch"), PAPER[name], strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def write_table9(table: pd.DataFrame, out: Path, *, facts: Mapping[str, str]) -> None:
    """Write `table9.csv` and `table9.md`."""
    header, rows = shown(table)
    write_text(out / "table9.csv", table.to_csv(index=False))
    write_text(out / "table9.md", markdown(header, rows) + "".join(f"\n- {name}: {text}" for name, text in facts.items()) + "\n")


def write_page(table: pd.DataFrame, trained: Mapping[str, VAE], data: Data, out: Path, *, facts: Mapping[str, str]) -> None:
    """Write `report.html`, the table with pictures of the models."""
    header, rows = shown(table)
    named = {type(model).__name__: model.eval() for model in trained.values()}
    measured = {name: label for name, label in ACCURACIES.items() if table[name].notna().any()}
    bars = {"Accuracy (Figure 15)": plots.accuracy_bars(table, {**measured, "paper: accuracy %": "the paper's, undefined"})}
    pictures = {
        **(bars if measured else {}),
        "Reconstructions of test images": plots.reconstructions(named, data.test.images),
        "Samples": plots.samples(named),
        **{f"Codes of test images: {name}": plots.latent_scatter(model, data.test) for name, model in named.items()},
    }
    page = PAGE.format(
        title=f"pyro-mvae: Table 9 on {data.name}",
        tables=html_table(header, rows),
        note="",
        pictures="".join(html_picture(title, content) for title, content in pictures.items()),
        facts="".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items()),
    )
    write_text(out / "report.html", page)


def shown(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text; without the figures that no model has."""
    figures = {name: label for name, label in FIGURES.items() if table[name].notna().any()}
    header = [
        "model",
        *figures.values(),
        "s/epoch",
        "parameters",
        "int8 KB",
        ".pte p50 µs",
        "paper: accuracy %",
        "paper: s/epoch",
    ]
    rows = []
    for row in table.to_dict("records"):
        cells = [row["model"], *(with_spread(row[name], row[f"{name}, sd"]) for name in figures), number(row["s/epoch"], 2)]
        cells += [number(row["parameters"], 0, ","), number(row["int8 KB"], 1), number(row["p50 µs"], 0)]
        rows.append([*cells, f"{row['paper: accuracy %']:.1f}", f"{row['paper: s/epoch']:g}"])
    return header, rows


def with_spread(value: float | None, sd: float | None) -> str:
    """A mean and its standard deviation, or a dash.

    Example:
        >>> with_spread(94.461, 0.5), with_spread(None, None)
        ('94.46 ± 0.50', '–')
    """
    mean, spread = number(value, 2), number(sd, 2)
    return mean if "–" in (mean, spread) else f"{mean} ± {spread}"


def number(value: float | None, places: int, thousands: str = "") -> str:
    """A number to some decimal places, or a dash.

    Example:
        >>> number(1.26, 1), number(None, 1)
        ('1.3', '–')
    """
    return "–" if value is None or pd.isna(value) else f"{value:{thousands}.{places}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]), end="")
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [header, None, *rows]
    return "".join("|" + "---|" * len(header) + "\n" if line is None else f"| {' | '.join(line)} |\n" for line in lines)
