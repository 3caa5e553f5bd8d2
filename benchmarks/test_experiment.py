"""Seconds of the paper's prompt experiments, 1000 epochs each, on the bundled emoji: its Table 6."""

from __future__ import annotations

import time

import pytest

from pyro_mvae.experiment import experiment
from pyro_mvae.side_by_side import cores

PROMPTS = {"few": ("flower", "tree", "star", "moon"), "many": ("red heart", "clock", "face", "animal")}
SECONDS, PAPER = 10, 27.5


@pytest.mark.parametrize("images", PROMPTS)
def test_experiment(images, tmp_path, record):
    """Seconds of each are its own, beside another; the mean is all time that passed, start and report included, over prompts."""
    begun = time.perf_counter()
    done = experiment(PROMPTS[images], out=tmp_path / "experiments", processes=min(cores(), 2))
    mean = round((time.perf_counter() - begun) / len(done), 2)
    figures = {each.prompt: {"images": each.num_images, "seconds": each.seconds} for each in done}
    about = {"prompts": figures, "mean_seconds": mean, "processes": min(cores(), 2), "the_papers_seconds": PAPER}
    record(f"experiment-{images}", about)
    if images == "few":
        assert mean <= SECONDS
