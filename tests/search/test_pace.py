"""How long students are trained, and whether they are taught."""

import itertools
import json
import math

import pytest
import torch

from pyro_mvae import VAE, Data, Split
from pyro_mvae.search import pace as module
from pyro_mvae.search.pace import Pace, batch_size, pace_of
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
        faster *= (2 if compile == "inductor" else 1) * threads
        return ({SLOW: 10.0, FAST: 1.0}[plan] + 3.0 * len(penalties)) / faster

    monkeypatch.setattr(module, "seconds_an_epoch", seconds)
    return asked


@pytest.fixture
def pace(measured, tmp_path):
    """The pace of a plan, of one teacher's students, on one thread."""
    how = {"teacher": VAE((1, 16, 16), 4, **SIZES), "data": grey(8), "out": tmp_path}
    return lambda plan, distill=1.0, **more: pace_of(plan, **how, distill=distill, **more)


def test_students_are_taught_where_it_is_cheap(pace, measured, tmp_path):
    for _ in range(2):
        assert [pace(SLOW), pace(FAST)] == [Pace(13.0, distilled=True), Pace(1.0, distilled=False)]
    assert measured == [(SLOW, False, "eager"), (SLOW, True, "eager"), (FAST, False, "eager")], "each once, the lesson too"
    assert sorted(json.loads((tmp_path / "paces.json").read_text()).values()) == [1.0, 3.0, 10.0]
    assert [pace(FAST), pace(SLOW)] == [Pace(1.0, distilled=False), Pace(13.0, distilled=True)]


def test_nobody_is_taught_against_his_will(pace, measured):
    assert [pace(SLOW, 0.0), pace(FAST, 0.0)] == [Pace(10.0, distilled=False), Pace(1.0, distilled=False)]
    assert (SLOW, True, "eager") not in measured


def test_epochs_on_the_bound_of_several_codes_are_longer(pace):
    found = pace(FAST, 0.0, importance_samples=5)
    assert found == Pace(4.0, distilled=False), "a second, and the codes' 3, and not those of a lesson that it does not get"
    assert pace(SLOW, importance_samples=5, threads=2) == Pace(8.0, distilled=True)


def test_students_are_trained_in_the_precision_that_they_are_faster_in(pace):
    both = {"precisions": ("float32", "bfloat16")}
    assert pace(SLOW, **both) == Pace(13.0, distilled=True)
    assert pace(FAST, **both) == Pace(0.5, distilled=False, precision="bfloat16")
    assert pace(FAST, **both, seconds=4000.0) == Pace(0.25, distilled=False, precision="bfloat16", compile="inductor")
    assert pace(SLOW, precisions=("bfloat16",)) == Pace(21.5, distilled=True, precision="bfloat16"), "as it is told"


def test_a_long_round_has_as_many_epochs_as_there_is_time_for_compiled(pace, measured, monkeypatch):
    assert pace(FAST, 0.0, seconds=40.0) == Pace(1.0, distilled=False)
    measured.clear()
    for _ in range(2):
        assert pace(FAST, 0.0, seconds=4000.0) == Pace(0.5, distilled=False, compile="inductor")
    assert measured == [(FAST, False, "inductor")], "once"
    monkeypatch.setattr(module, "seconds_an_epoch", lambda *_, compile, **__: {"eager": 1.0, "inductor": math.inf}[compile])
    assert pace(SLOW, 0.0, seconds=4000.0, threads=3) == Pace(1.0, distilled=False, compile="eager")


def test_a_student_alone_has_as_many_epochs_as_there_is_time_for_on_all_threads(pace, measured):
    for threads in (1, 2):
        assert pace(SLOW, threads=threads) == Pace(13.0 / threads, distilled=True)
        assert pace(SLOW, threads=threads, seconds=4000.0) == Pace(6.5 / threads, distilled=True, compile="inductor")
    measured.clear()
    assert pace(SLOW, 0.0, threads=2, seconds=4000.0) == Pace(2.5, distilled=False, compile="inductor")
    assert measured == [(SLOW, False, "inductor")], "not what it takes with a teacher"


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
