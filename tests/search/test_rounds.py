"""How the minutes of a search are shared, and whether students are taught."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_mvae import VAE, Data, Split
from pyro_mvae.search import rounds as module
from pyro_mvae.search.plans import Plan
from pyro_mvae.search.rounds import KEPT, LEAST_EPOCHS, RUNGS, batch_size, rounds, schedule
from tests.catalog import SIZES


@given(st.integers(1, 40), st.floats(0, 5000))
def test_rounds_use_the_time_and_no_more(students, epochs):
    made = rounds(students, epochs)
    assert len(made) == len(RUNGS)
    assert made[0][1] <= students
    for (_, before), (_, after) in itertools.pairwise(made):
        assert 1 <= after <= max(before // KEPT, 1)
    if epochs >= len(RUNGS) / min(RUNGS):
        assert sum(each * number for each, number in made) <= epochs
    if made[0][1] > 1:
        assert made[0][0] >= LEAST_EPOCHS


@pytest.mark.parametrize(("dear", "distilled", "epochs"), [(1.5, True, 1200), (6.0, False, 1800)])
def test_students_are_taught_where_it_is_cheap(dear, distilled, epochs, tmp_path, monkeypatch):
    """An epoch alone takes a second, one with the teacher some more: half an hour is 1,800 seconds."""
    monkeypatch.setattr(module, "seconds_an_epoch", lambda plan, teacher, data, taught_by: dear if taught_by else 1.0)
    data = Data("grey", *(Split(torch.zeros(n, 1, 16, 16, dtype=torch.uint8)) for n in (8, 4)), binarization="dynamic")
    teacher = VAE((1, 16, 16), 4, **SIZES)
    how = {"minutes": 30, "processes": 1, "distill": 1.0}
    made = schedule([Plan("mobile", (8,), 8, 4, 8)] * 12, {4: teacher}, data, tmp_path, **how)
    assert made.distilled == distilled
    assert made.rounds == rounds(12, epochs)
    assert json.loads((tmp_path / "schedule.json").read_text())["distilled"] == distilled
    monkeypatch.setattr(module, "seconds_an_epoch", None)
    assert schedule([], {}, data, tmp_path, **how) == made, "made once"


def test_nobody_is_taught_against_his_will(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "seconds_an_epoch", lambda plan, teacher, data, taught_by: 1.0)
    data = Data("grey", *(Split(torch.zeros(n, 1, 16, 16, dtype=torch.uint8)) for n in (8, 4)), binarization="dynamic")
    how = {"minutes": 30, "processes": 1, "distill": 0.0}
    assert not schedule([Plan("mobile", (8,), 8, 4, 8)], {4: VAE((1, 16, 16), 4, **SIZES)}, data, tmp_path, **how).distilled


def test_batches():
    def of(size):
        return Data("grey", *(Split(torch.zeros(n, 1, 1, 1, dtype=torch.uint8)) for n in (size, 2)), binarization="none")

    assert [batch_size(of(size)) for size in (1000, 25_000)] == [64, 128]
