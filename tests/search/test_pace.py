"""How long students are trained, and whether they are taught."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from pyro_mvae import VAE, Data, Split
from pyro_mvae.search import pace as module
from pyro_mvae.search.pace import Pace, batch_size, pace_within, paces
from pyro_mvae.search.plans import Plan
from tests.catalog import SIZES

SLOW, FAST = Plan("mobile", (8,), 8, 4, 8), Plan("mlp", (), 8, 4, 8)


def grey(size):
    return Data("grey", *(Split(torch.zeros(n, 1, 16, 16, dtype=torch.uint8)) for n in (size, 4)), binarization="dynamic")


@pytest.fixture
def measured(monkeypatch):
    """An epoch of the slow one alone takes 10 seconds, of the fast one a second, and a lesson three more; what was measured."""
    asked = []

    def seconds(plan, teacher, data, *, penalties, precision, threads, compile="eager"):
        asked.append((plan, bool(penalties), compile))
        faster = {"float32": 1.0, "bfloat16": {SLOW: 0.5, FAST: 2.0}[plan]}[precision]
        faster *= (2 if compile == "inductor" else 1) * (1.5 if threads == 2 else 1)
        return ({SLOW: 10.0, FAST: 1.0}[plan] + 3.0 * len(penalties)) / faster

    monkeypatch.setattr(module, "seconds_an_epoch", seconds)
    return asked


def test_students_are_taught_where_it_is_cheap(measured, tmp_path):
    teachers, data = {4: VAE((1, 16, 16), 4, **SIZES)}, grey(8)
    expected = {SLOW: Pace(13.0, distilled=True), FAST: Pace(1.0, distilled=False)}
    assert paces([SLOW, FAST], teachers, data, tmp_path, distill=1.0) == expected
    assert sorted(measured, key=str) == sorted(
        [(SLOW, False, "eager"), (SLOW, True, "eager"), (FAST, False, "eager")], key=str
    ), "each once"
    assert json.loads((tmp_path / "paces.json").read_text()) == {
        f"{SLOW.name}, float32, 1 threads, eager": 10.0,
        "lesson, float32, 1 threads, eager": 3.0,
        f"{FAST.name}, float32, 1 threads, eager": 1.0,
    }
    measured.clear()
    assert paces([FAST, SLOW], teachers, data, tmp_path, distill=1.0) == expected
    assert not measured


def test_nobody_is_taught_against_his_will(measured, tmp_path):
    found = paces([SLOW, FAST], {4: VAE((1, 16, 16), 4, **SIZES)}, grey(8), tmp_path, distill=0.0)
    assert found == {SLOW: Pace(10.0, distilled=False), FAST: Pace(1.0, distilled=False)}
    assert (SLOW, True, "eager") not in measured


def test_epochs_on_the_bound_of_several_codes_are_longer(measured, tmp_path):
    teachers, data = {4: VAE((1, 16, 16), 4, **SIZES)}, grey(8)
    found = paces([FAST], teachers, data, tmp_path, distill=0.0, importance_samples=5)[FAST]
    assert found == Pace(4.0, distilled=False), "a second, and the codes' 3, and not those of a lesson that it does not get"
    found = paces([SLOW], teachers, data, tmp_path, distill=1.0, importance_samples=5)[SLOW]
    assert found == Pace(16.0, distilled=True)


def test_students_are_trained_in_the_precision_that_they_are_faster_in(measured, tmp_path):
    teachers, data = {4: VAE((1, 16, 16), 4, **SIZES)}, grey(8)
    how = {"distill": 1.0, "precisions": ("float32", "bfloat16")}
    expected = {SLOW: Pace(13.0, distilled=True), FAST: Pace(0.5, distilled=False, precision="bfloat16")}
    assert paces([SLOW, FAST], teachers, data, tmp_path, **how) == expected
    alone = {**how, "precisions": ("bfloat16",)}
    found = paces([SLOW, FAST], teachers, data, tmp_path, **alone)
    assert found[SLOW] == Pace(20.0 + 6.0, distilled=True, precision="bfloat16"), "as it is told"
    found = pace_within(4000.0, FAST, teachers[4], data, tmp_path, pace=expected[FAST], distill=1.0)
    assert found == Pace(0.25, distilled=False, precision="bfloat16", compile="inductor")


def test_a_long_round_has_as_many_epochs_as_there_is_time_for_compiled(measured, tmp_path):
    teacher, data = VAE((1, 16, 16), 4, **SIZES), grey(8)
    given = Pace(1.0, distilled=False)
    how = {"plan": FAST, "teacher": teacher, "data": data, "out": tmp_path, "pace": given, "distill": 1.0}
    assert pace_within(40.0, **how) == given
    assert not measured
    for _ in range(2):
        assert pace_within(4000.0, **how) == Pace(0.5, distilled=False, compile="inductor")
    assert measured == [(FAST, False, "inductor")], "once"
    assert pace_within(4000.0, **{**how, "pace": replace(given, seconds=0.4)}) == Pace(0.4, distilled=False, compile="eager")


def test_a_round_of_few_students_has_as_many_epochs_as_there_is_time_for_on_all_threads(measured, tmp_path):
    teacher, data = VAE((1, 16, 16), 4, **SIZES), grey(8)
    given = paces([SLOW], {4: teacher}, data, tmp_path, distill=1.0)[SLOW]
    how = {"plan": SLOW, "teacher": teacher, "data": data, "out": tmp_path, "pace": given, "distill": 1.0}
    assert given == Pace(13.0, distilled=True)
    assert pace_within(40.0, **how, threads=1) == given
    assert pace_within(40.0, **how, threads=2) == Pace(13.0 / 1.5, distilled=True, threads=2)
    assert pace_within(4000.0, **how, threads=2) == Pace(13.0 / 3, distilled=True, compile="inductor", threads=2)
    measured.clear()
    assert pace_within(4000.0, **how, threads=1) == Pace(6.5, distilled=True, compile="inductor"), "not what two threads take"


def test_an_epoch_that_can_not_be_compiled_takes_for_ever_and_one_that_can_not_be_run_is_an_error(monkeypatch):
    def fit(*_, compile, **__):
        raise RuntimeError(f"no {compile}")

    monkeypatch.setattr(module, "fit", fit)
    teacher, threads = VAE((1, 16, 16), 4, **SIZES), torch.get_num_threads()
    assert module.seconds_an_epoch(FAST, teacher, grey(8), threads=threads + 1, compile="inductor") == math.inf
    with pytest.raises(RuntimeError, match="no eager"):
        module.seconds_an_epoch(FAST, teacher, grey(8), threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_epochs_of_some_seconds():
    for seconds, of_one in itertools.product((0.01, 1.0, 100.0), (0.3, 7.0)):
        epochs = Pace(of_one, distilled=False).epochs(seconds)
        assert epochs == 1 or epochs * of_one <= seconds < (epochs + 1) * of_one


def test_batches():
    assert [batch_size(grey(size)) for size in (1000, 25_000)] == [64, 128]
