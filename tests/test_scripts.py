"""Scripts for people with a phone, against an `adb` that says what one would."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
