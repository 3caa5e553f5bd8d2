"""What a build made, in figures: as JSON, as a page, and as a table."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from pyro_mvae.atomic import write_text

PROXY = "p50 and p90 on one thread of this machine's CPU: a proxy, no phone's latency. Core ML runs on Apple's systems only."


@dataclass(frozen=True)
class Report:
    """The figures of a build, under the keys of `report.json`, and the pictures of its page.

    Example:
        >>> report = Report("0.1.0", 0, data={}, teacher={}, student={}, artifacts=[], seconds=1.0, environment={})
        >>> report.to_dict()["seed"]
        0
    """

    version: str
    seed: int
    data: dict[str, Any]
    teacher: dict[str, Any]
    student: dict[str, Any]
    artifacts: list[dict[str, Any]]
    seconds: float
    environment: dict[str, str]
    figures: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What `report.json` holds: everything but the pictures."""
        values = asdict(self)
        del values["figures"]
        return values

    def to_json(self) -> str:
        """The text of `report.json`."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.html`.

        Raises:
            OSError: when the folder can't be written.
        """
        for name, text in {"report.json": self.to_json(), "report.html": self.to_html()}.items():
            write_text(folder / name, text)

    def model_rows(self) -> list[list[str]]:
        """Name, parameters, multiply-adds, NLL and size of teacher and student."""
        int8 = sum(item["bytes"] for item in self.artifacts if item["format"] == "executorch")
        sizes = {"teacher": f"{4 * self.teacher['params'] / 1000:,.1f} KB float32", "student": f"{int8 / 1000:,.1f} KB int8 .pte"}
        models = {"teacher": self.teacher, "student": self.student}
        return [
            [name, f"{row['params']:,}", f"{row['macs']:,}", f"{row['nll']:.2f}", sizes[name]] for name, row in models.items()
        ]

    def artifact_rows(self) -> list[list[str]]:
        """File, precision, size, worst difference from PyTorch, PSNR and latency of each artifact."""
        return [
            [
                item["path"],
                item["precision"],
                f"{item['bytes'] / 1000:,.1f}",
                f"{item['max_abs_diff']:.1e}",
                f"{item['psnr_db']:.1f}",
                *("–" if item[key] is None else f"{item[key]:,.0f}" for key in ("p50_us", "p90_us")),
            ]
            for item in self.artifacts
        ]

    def tables(self) -> list[Table]:
        """The two tables that a terminal shows."""
        samples = self.student["nll_samples"]
        titles = [f"{self.data['name']}: NLL in nats per image, {samples} importance samples", PROXY]
        return [filled(title, header, rows) for title, (header, rows) in zip(titles, self.sections().values(), strict=True)]

    def sections(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Header and rows of each table."""
        return {
            "Models": (["model", "parameters", "MACs", "NLL", "size"], self.model_rows()),
            "Files": (["file", "precision", "KB", "max diff", "PSNR dB", "p50 µs", "p90 µs"], self.artifact_rows()),
        }

    def to_html(self) -> str:
        """A page that needs no other file."""
        tables = "".join(f"<h2>{title}</h2>{html_table(*content)}" for title, content in self.sections().items())
        pictures = "".join(html_picture(title, content) for title, content in self.figures.items())
        facts = {
            "data": f"{self.data['name']}: {self.data['num_train']:,} train, {self.data['num_test']:,} test, "
            f"shape {self.data['shape']}, binarisation {self.data['binarization']}",
            "NLL": f"nats per image, on all test images, {self.student['nll_samples']} importance samples; "
            f"the student's is that of its int8 nets ({self.student['bits_per_dim']:.4f} bits per dimension)",
            "passes": ", ".join(self.student["passes"]),
            "time": f"{self.seconds:.0f} s, seed {self.seed}, pyro-mvae {self.version}",
            "machine": ", ".join(f"{name} {value}" for name, value in self.environment.items()),
        }
        listing = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
        return PAGE.format(
            title=html.escape(f"pyro-mvae: {self.data['name']}"), tables=tables, pictures=pictures, facts=listing, note=PROXY
        )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }} th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }} img {{ max-width: 100%; }} dt {{ font-weight: 600; }}
</style></head><body><h1>{title}</h1>{tables}<p>{note}</p>{pictures}<h2>How it was made</h2><dl>{facts}</dl></body></html>
"""


def html_picture(title: str, content: bytes) -> str:
    """A PNG file inside the page, under its title."""
    title = html.escape(title)
    return f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows of text as an HTML table.

    Example:
        >>> html_table(["a"], [["<1>"]])
        '<table><tr><th>a</th></tr><tr><td>&lt;1&gt;</td></tr></table>'
    """
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def filled(title: str, header: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
