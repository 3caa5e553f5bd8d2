"""What `pyro-mvae build` reaches on the bundled digits: bytes, likelihood, and speed against its own teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.interleave import interleaved, one_core
from pyro_mvae import VAE, load_data, load_model
from pyro_mvae.export.verify import inputs_for, load_artifact
from pyro_mvae.latency.timing import ready

BUDGET_KB, SMALLER, NATS = 64, 20, 2.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_build(seed, tmp_path, record):
    out = tmp_path / "build"
    command = ["build", "--data", "digits", "--budget-kb", str(BUDGET_KB), "--seed", str(seed), "--out", str(out), "--json"]
    printed = subprocess.run([sys.executable, "-m", "pyro_mvae", *command], check=True, capture_output=True, text=True)
    report = json.loads(printed.stdout)
    teacher = load_model(out / "checkpoints/teacher.safetensors").eval()
    figures = size_figures(report, teacher) | nll_figures(report) | {"build_seconds": report["seconds"]}
    record(f"build-digits-seed{seed}", figures | {"latency": latency_figures(out, teacher)})
    assert figures["int8_pte_bytes"] <= BUDGET_KB * 1000
    assert figures["times_smaller"] >= SMALLER
    assert figures["nll_loss"] <= NATS


def size_figures(report: dict[str, Any], teacher: VAE) -> dict[str, Any]:
    small = sum(item["bytes"] for item in report["artifacts"] if item["format"] == "executorch")
    large = sum(value.numel() * value.element_size() for value in teacher.parameters())
    return {"int8_pte_bytes": small, "teacher_float32_bytes": large, "times_smaller": round(large / small, 1)}


def nll_figures(report: dict[str, Any]) -> dict[str, Any]:
    nats = {f"{name}_nll": report[name]["nll"] for name in ("teacher", "student")}
    loss = round(nats["student_nll"] - nats["teacher_nll"], 3)
    return {**nats, "nll_loss": loss, "nll_samples": report["student"]["nll_samples"]}


def latency_figures(out: Path, teacher: VAE) -> dict[str, Any]:
    """One image at a time: the student's `.pte` with int8 nets against the teacher's nets in eager PyTorch."""
    images = load_data("digits").test.images
    figures: dict[str, Any] = {}
    with one_core(), torch.inference_mode():
        x, z = (inputs_for(part, teacher, images)[:1] for part in ("encoder", "decoder"))
        encode, decode = (ready(load_artifact(out / f"{part}.pte").run, each) for part, each in (("encoder", x), ("decoder", z)))
        times = interleaved(
            {
                "teacher encoder, eager": lambda: teacher.encoder(x / 255),
                "student encoder.pte": encode,
                "teacher decoder, eager": lambda: teacher.decode(z) * 255,
                "student decoder.pte": decode,
            }
        )
    for part in ("encoder", "decoder"):
        eager, pte = times[f"teacher {part}, eager"], times[f"student {part}.pte"]
        figures[f"{part}_times_faster"] = round(eager["p50_us"] / pte["p50_us"], 1)
    return {**times, **figures}
