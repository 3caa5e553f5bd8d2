"""Tables in windows of any width, and in what is none; what is said where there is no window."""

import logging

import pytest

from pyro_mvae.cli.terminal import progress_bars, show
from pyro_mvae.report import filled

NAME = "student, decoder, executorch, int8"


def table():
    return filled("Files", ["file", *(f"column {i}" for i in range(8))], [[NAME, *map(str, range(8))]])


def test_a_file_has_the_whole_table(capsys):
    show(table())
    printed = capsys.readouterr().out
    assert NAME in printed
    assert "column 7" in printed
    assert "more columns" not in printed


@pytest.mark.parametrize(("width", "shown"), [(200, 9), (80, 4)])
def test_a_narrow_window_has_fewer_columns_and_says_so(width, shown, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    show(table())
    printed = capsys.readouterr().out
    assert [f"column {i}" in printed for i in range(8)] == [i < shown - 1 for i in range(8)]
    assert NAME in printed
    assert (f"{9 - shown} more columns" in printed) == (shown < 9)


def test_warnings_are_in_a_file_too_and_notes_are_not(capsys):
    logger = logging.getLogger("pyro_mvae.search.halving")
    with progress_bars():
        logger.warning("student %s: lost", "mlp")
        logger.info("compiled in 3 s")
    assert capsys.readouterr().err == "student mlp: lost\n"
