"""Seconds of the paper's prompt experiments, 1000 epochs each, on the bundled emoji: its Table 6."""

from __future__ import annotations

import statistics

from pyro_mvae.experiment import experiment
from pyro_mvae.side_by_side import cores

PROMPTS = ("red heart", "clock", "face", "animal")
SECONDS, PAPER = 10, 27.5


def test_experiment(tmp_path, record):
    done = experiment(PROMPTS, out=tmp_path / "experiments", processes=min(cores(), 2))
    figures = {each.prompt: {"images": each.num_images, "seconds": each.seconds} for each in done}
    mean = round(statistics.fmean(each.seconds for each in done), 2)
    record("experiment", {"prompts": figures, "mean_seconds": mean, "processes": min(cores(), 2), "the_papers_seconds": PAPER})
    assert mean <= SECONDS
