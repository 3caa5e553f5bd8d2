"""Every notebook runs from top to bottom."""

import json
from pathlib import Path

import pyro
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    names = {}
    with pyro.validation_enabled(True):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), names)


def test_there_are_notebooks():
    assert NOTEBOOKS
