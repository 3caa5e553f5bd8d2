"""Every notebook runs from top to bottom, with the package as users have it: installed, and nowhere near its sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = """
import json, sys
import pyro, pyro_mvae
print(pyro_mvae.__file__)
pyro.enable_validation(True)
for path in sys.argv[1:]:
    names = {}
    with open(path, encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path}, cell {cell['id']}", "exec"), names)
"""


def installed(folder: Path) -> Path:
    """Where the package ends up when it is installed from a copy of its sources."""
    sources, target = folder / "sources", folder / "installed"
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pyro_mvae", sources / "pyro_mvae", ignore=unwanted)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    how = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *how, "--target", target, sources], check=True)
    return target


def test_notebooks(tmp_path):
    target = installed(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(target), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, *map(str, NOTEBOOKS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target))


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]
