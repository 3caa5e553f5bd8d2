"""The direction of imports in the house: what is above may import what is below, never the other way."""

import ast

import pytest

from tests.catalog import PACKAGE

LAYERS = [
    {"__main__"},
    {"cli"},
    {"build", "apply", "compare", "experiment"},
    {"table9", "results"},
    {"costs", "document", "monitor"},
    {"search"},
    {"latency"},
    {"report", "plots", "train", "recipe", "origin"},
    {"evaluate"},
    {"compress"},
    {"export"},
    {"inference"},
    {"models"},
    {"theta"},
    {"likelihoods"},
    {"nets", "data", "distributions"},
    {"failures", "claimed"},
    {"atomic", "environment", "numbers", "side_by_side", "_version"},
]
UPWARDS = {("models/vade.py", "inference")}  # `initialize(data)` trains, by `fit` unless told otherwise
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path) -> set[str]:
    """First parts, below the package, of what a file imports from it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "pyro_mvae":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyro_mvae."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pyro_mvae.")}
    return names


def part(path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = part(path)
    assert here in LEVEL, f"{here} has no place in LAYERS"
    if here in ("__main__", "cli"):  # it may name anything, the package itself included
        return
    for name in imported(path) - {here}:
        if (path.relative_to(PACKAGE).as_posix(), name) in UPWARDS:
            continue
        assert LEVEL[name] > LEVEL[here], f"{path.name} in {here} imports {name}, which is not below it"


def test_nets_import_nothing_of_ours():
    for path in (PACKAGE / "nets").glob("*.py"):
        assert imported(path) <= {"nets"}


def test_the_rule_can_fail():
    assert LEVEL["nets"] > LEVEL["models"] > LEVEL["inference"] > LEVEL["cli"]
