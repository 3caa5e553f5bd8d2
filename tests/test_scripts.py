"""Scripts for people with a phone or a Mac, against an `adb`, or a Core ML, that says what one would."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_mvae import export_coreml, export_coreml_functions
from pyro_mvae.export import MilProgram
from tests.catalog import MODELS

DIFFERENCES = Path(__file__).parents[1] / "scripts/core_ml_differences.py"
SCRIPT = Path(__file__).parents[1] / "scripts/android_latency.sh"
ADB = """#!/usr/bin/env bash
echo "$*" >> "$ADB_LOG"
case "$*" in
    *ro.product.model) echo "Phone of paper" ;;
    *num_executions*)
        turn=$(grep -c num_executions "$ADB_LOG")
        echo "I executorch:runner.cpp:1] Iteration 1 of 1024: 9.9 ms"
        {say}
        echo "OutputX 0: tensor(sizes=[1, 4])" ;;
esac
"""
SAYS = 'echo "I executorch:runner.cpp:2] Model executed successfully 1024 time(s) in $((1024 * turn)).512 ms."'


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """The words that call the script, and the `adb` that it finds."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ADB_LOG", str(tmp_path / "adb.log"))
    for name in ("runner", "encoder.pte", "decoder.pte"):
        (tmp_path / name).write_bytes(b"")
    words = [str(SCRIPT), *(str(tmp_path / name) for name in ("runner", "encoder.pte", "decoder.pte"))]
    return words, tmp_path / "bin" / "adb"


def called(words):
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_microseconds_are_those_of_the_middle_turn(phone):
    words, adb = phone
    adb.write_text(ADB.replace("{say}", SAYS))
    adb.chmod(0o755)
    found = called(words)
    assert found.returncode == 0, found.stderr
    # one call warms up; of the turns 2 to 6 of the first file, and 8 to 12 of the second, the middle ones are 4 and 10
    assert found.stdout.splitlines() == [
        "Phone of paper, one thread, median of 5 turns of 1024 calls:",
        "encoder.pte: 4000.5 µs a call",
        "decoder.pte: 10000.5 µs a call",
    ]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_runner_that_tells_no_time_and_other_mistakes(phone, tmp_path):
    words, adb = phone
    adb.write_text(ADB.replace("{say}", ":"))
    adb.chmod(0o755)
    silent = called(words)
    assert silent.returncode == 1
    assert "does not say how long encoder.pte took" in silent.stderr
    assert "rm -rf" in (tmp_path / "adb.log").read_text(), "nothing is left on the phone"
    assert "usage" in called(words[:2]).stderr
    assert "no file at" in called([*words, "gone.pte"]).stderr


class CoreML:
    """Core ML as a Mac's is called: by the evaluator, and wrong by a tenth on the neural engine."""

    def __init__(self, package, *, compute_units, function_name="main"):
        self.program, self.wrong = MilProgram.load(package, function=function_name), compute_units.name == "CPU_AND_NE"

    def predict(self, given):
        arrays = {}
        for name, value in given.items():
            assert isinstance(value, Image.Image) == (name in self.program.images)
            tensor = np.asarray(value, np.float32)
            arrays[name] = (tensor.transpose(2, 0, 1)[None] if tensor.ndim == 3 else tensor) if value is not tensor else tensor
        found = {name: value + 0.1 * self.wrong for name, value in self.program(arrays).items()}
        return {name: self.shown(value) if name in self.program.images else value for name, value in found.items()}

    def shown(self, pixels):
        return Image.fromarray(pixels[0].transpose(1, 2, 0).round().astype(np.uint8)).convert("RGBA")


@pytest.fixture
def core_ml_differences(monkeypatch):
    spec = importlib.util.spec_from_file_location("core_ml_differences", DIFFERENCES)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stand_in = SimpleNamespace(models=SimpleNamespace(MLModel=CoreML), ComputeUnit=script.ct.ComputeUnit)
    monkeypatch.setattr(script, "ct", stand_in)
    return script


def test_units_that_compute_something_else_are_seen(core_ml_differences, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    model = MODELS["VAE"]((1, 16, 16)).eval()
    export_coreml_functions(model, tmp_path / "both.mlpackage", parts=("encoder", "decoder"))
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "both.mlpackage")])
    core_ml_differences.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9, "two outputs of the encoder, one of the decoder, on three units"
    for line in lines:
        most = float(line.split("at most ")[1].split(",")[0])
        assert most == pytest.approx(0.1 if "CPU_AND_NE" in line else 0, abs=1e-3), line


def test_pictures_are_given_and_got_as_such(core_ml_differences, tmp_path):
    torch.manual_seed(0)
    package = str(tmp_path / "reconstruct.mlpackage")
    export_coreml(MODELS["VAE"]((3, 16, 16)).eval(), package, part="reconstruct", pictures="images")
    found = list(core_ml_differences.differences(package, function="main", several=False))
    assert [units for units, *_ in found] == list(core_ml_differences.UNITS)
    assert all(most <= 0.6 for *_, most, _ in found), "whole levels, and nothing transposed"
    assert all(span > 1 for *_, span in found)
