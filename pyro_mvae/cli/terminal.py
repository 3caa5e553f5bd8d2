"""What every verb shares: bars of progress, and mistakes that end in one line and an exit code."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pyro_mvae.inference.parallel import ProcessLost
from pyro_mvae.search import BudgetError

USUAL_EPOCHS = "as many as make 1,250 steps, and 8 at least"
FAILED, USAGE, OVER_BUDGET, CROSSED, PROCESS_LOST, INTERRUPTED = 1, 2, 3, 4, 5, 130


def named(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """NAME=TEXT, given any number of times, as a dictionary."""
    for each in given:
        name, equals, _ = each.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"is {each!r}, expected NAME=TEXT", ctx, option)
    return dict(each.split("=", 1) for each in given)


about = click.option(
    "--about",
    multiple=True,
    callback=named,
    metavar="NAME=TEXT",
    help="What Xcode shows of a Core ML package: author, license, version, or anything else.",
)


@contextmanager
def progress_bars(*, shown: bool = True, said: str = ""):
    """Bars with the time left, and notes such as how long compiling took, on standard error; warnings alone when that is a file.

    Args:
        shown: whether this process shows any.
        said: the name of the logger whose notes are lines of a file too, for what takes so long that somebody looks.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bars:

        def track(steps: Iterable[Any], description: str, total: int) -> Iterable[Any]:
            return bars.track(steps, total=total, description=description)

        notes = logging.Handler(logging.INFO)

        def emit(record: logging.LogRecord) -> None:
            if not bars.disable or (shown and (record.levelno >= logging.WARNING or record.name == said)):
                bars.console.print(record.getMessage(), style="dim", markup=False, highlight=False, soft_wrap=True)

        notes.emit = emit
        logger = logging.getLogger("pyro_mvae")
        logger.addHandler(notes)
        logger.setLevel(logging.INFO)
        try:
            yield track
        finally:
            logger.removeHandler(notes)


def show(table: Table) -> None:
    """Print a table with whole cells: in a window that is too narrow for it as many columns, from the left, as there is room for.

    What is no window, a file say, is as wide as the table.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(full_width(table, console), console.width))
    columns = len(table.columns)
    while full_width(table, console) > console.width and len(table.columns) > 2:
        table.columns.pop()
    console.print(table)
    if len(table.columns) < columns:
        console.print(f"{columns - len(table.columns)} more columns in a wider window", style="dim", highlight=False)


def full_width(table: Table, console: Console) -> int:
    """How wide a table is with whole cells."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum


class Verb(click.Command):
    """A command whose mistakes end in one line and an exit code, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BudgetError as error:
            fail(error, OVER_BUDGET)
        except KeyboardInterrupt as error:
            fail(f"{str(error) or 'interrupted'}{advice(ctx)}", INTERRUPTED)
        except FloatingPointError as error:
            fail(f"{error}{advice(ctx)}", USAGE)
        except ProcessLost as error:
            fail(f"{error}; start it again with --resume", PROCESS_LOST)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error, USAGE)
        except ValueError as error:
            fail(error, USAGE)


def fail(message: object, code: int) -> None:
    text = " ".join(str(message).split())
    click.echo(f"error: {text}", err=True)
    raise SystemExit(code)


def advice(ctx: click.Context) -> str:
    """How to take up what was interrupted."""
    out = ctx.params.get("out")
    if out and (Path(out) / "build.json").exists():
        return f"; go on with: pyro-mvae {ctx.info_name} --out {out} --resume"
    return "; go on with the same command" if out and (Path(out) / "search.json").exists() else ""


class Verbs(click.Group):
    """The verbs; what click itself finds wrong ends in one line too."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            fail(f"{error.format_message()} {f'See: {context.command_path} --help' if context else ''}", USAGE)
        except click.Abort:
            fail("interrupted", INTERRUPTED)
        raise SystemExit(0)
