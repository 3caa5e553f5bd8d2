"""Importing the evaluator is lazy and libraries are kept quiet."""

import logging
import subprocess
import sys
import warnings

import pytest
from tqdm import tqdm

from pyro_mvae.export._quiet import quiet
from tests.export.mil_programs import mb, mil, save


def test_importing_is_lazy_and_quiet(tmp_path):
    path = save(mil([(1, 3)], lambda x: mb.exp(x=x)), tmp_path / "a.mlpackage")
    script = f"""
import sys
import pyro_mvae.export.mil as mil
assert not {{"coremltools", "executorch", "matplotlib", "sklearn", "torchao"}} & set(sys.modules)
print(mil.MilProgram.load({str(path)!r}).inputs)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{'x': (1, 3)}\n", "")


def test_quiet_puts_everything_back(capfd):
    before, filters = logging.getLogger("coremltools").level, list(warnings.filters)
    with quiet():
        logging.getLogger("coremltools").warning("unheard")
        list(tqdm([1], file=sys.stderr))
        warnings.warn("unheard", DeprecationWarning, stacklevel=1)
        with pytest.raises(RuntimeWarning, match="heard"):
            warnings.warn("heard", RuntimeWarning, stacklevel=1)
    assert capfd.readouterr().err == ""
    list(tqdm([1], file=sys.stderr))
    assert "1/1" in capfd.readouterr().err
    assert (logging.getLogger("coremltools").level, warnings.filters) == (before, filters)
