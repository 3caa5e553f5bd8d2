"""How long students are trained, and whether they are taught."""

import itertools
import json
import math

import pytest
import torch

from pyro_mvae import VAE, Data, Split
from pyro_mvae.search import pace as module
from pyro_mvae.search.pace import Pace, batch_size, late_epochs, paces
from pyro_mvae.search.plans import Plan
from tests.catalog import SIZES

SLOW, FAST = Plan("mobile", (8,), 8, 4, 8), Plan("mlp", (), 8, 4, 8)


def grey(size):
    return Data("grey", *(Split(torch.zeros(n, 1, 16, 16, dtype=torch.uint8)) for n in (size, 4)), binarization="dynamic")


@pytest.fixture
def measured(monkeypatch):
    """An epoch of the slow one alone takes 10 seconds, of the fast one a second, and a lesson three more; what was measured."""
    asked = []

    def seconds(plan, teacher, data, *, penalties, precision, compile="eager"):
        asked.append((plan, bool(penalties), compile))
        return ({SLOW: 10.0, FAST: 1.0}[plan] + 3.0 * len(penalties)) / (2 if compile == "inductor" else 1)

    monkeypatch.setattr(module, "seconds_an_epoch", seconds)
    return asked


def test_students_are_taught_where_it_is_cheap(measured, tmp_path):
    teachers, data = {4: VAE((1, 16, 16), 4, **SIZES)}, grey(8)
    expected = {SLOW: Pace(13.0, distilled=True), FAST: Pace(1.0, distilled=False)}
    assert paces([SLOW, FAST], teachers, data, tmp_path, distill=1.0) == expected
    assert sorted(measured, key=str) == sorted(
        [(SLOW, False, "eager"), (SLOW, True, "eager"), (FAST, False, "eager")], key=str
    ), "each once"
    assert json.loads((tmp_path / "paces.json").read_text()) == {SLOW.name: 10.0, "lesson": 3.0, FAST.name: 1.0}
    measured.clear()
    assert paces([FAST, SLOW], teachers, data, tmp_path, distill=1.0) == expected
    assert not measured


def test_nobody_is_taught_against_his_will(measured, tmp_path):
    found = paces([SLOW, FAST], {4: VAE((1, 16, 16), 4, **SIZES)}, grey(8), tmp_path, distill=0.0)
    assert found == {SLOW: Pace(10.0, distilled=False), FAST: Pace(1.0, distilled=False)}
    assert (SLOW, True, "eager") not in measured


def test_late_epochs_are_longer(measured, tmp_path):
    teacher, data = VAE((1, 16, 16), 4, **SIZES), grey(8)
    found = paces([FAST], {4: teacher}, data, tmp_path, distill=0.0)[FAST]
    for _ in range(2):
        epochs = late_epochs(FAST, teacher, data, tmp_path, pace=found, weight=1.0, samples=5, seconds=40.0)
        assert epochs == 10, "of 4 seconds, the codes' 3 among them, and not those of a lesson that it does not get"
    assert measured.count((FAST, True, "eager")) == 1
    assert (FAST, True, "inductor") not in measured


def test_a_long_late_round_is_as_long_as_it_takes_when_compiled(measured, tmp_path):
    teacher, data = VAE((1, 16, 16), 4, **SIZES), grey(8)
    for samples, of_one in ((1, 0.5), (5, 2.0)):
        how = {"pace": Pace(1.0, distilled=False), "weight": 1.0, "samples": samples, "seconds": 4000.0}
        assert late_epochs(FAST, teacher, data, tmp_path, **how) == 4000 / of_one


def test_an_epoch_that_can_not_be_compiled_takes_for_ever_and_one_that_can_not_be_run_is_an_error(monkeypatch):
    def fit(*_, compile, **__):
        raise RuntimeError(f"no {compile}")

    monkeypatch.setattr(module, "fit", fit)
    assert module.seconds_an_epoch(FAST, VAE((1, 16, 16), 4, **SIZES), grey(8), compile="inductor") == math.inf
    with pytest.raises(RuntimeError, match="no eager"):
        module.seconds_an_epoch(FAST, VAE((1, 16, 16), 4, **SIZES), grey(8))


def test_epochs_of_some_seconds():
    for seconds, of_one in itertools.product((0.01, 1.0, 100.0), (0.3, 7.0)):
        epochs = Pace(of_one, distilled=False).epochs(seconds)
        assert epochs == 1 or epochs * of_one <= seconds < (epochs + 1) * of_one


def test_batches():
    assert [batch_size(grey(size)) for size in (1000, 25_000)] == [64, 128]
