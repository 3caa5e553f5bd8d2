"""How the minutes of a search are shared."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_mvae.search.halving import KEPT, LEAST_EPOCHS, ROUND_SHARES, affordable, granted, leaders_first, rungs
from pyro_mvae.search.plans import Plan


@given(st.integers(1, 40), st.floats(0.01, 80), st.floats(0.01, 10), st.integers(1, 8))
def test_rounds_use_the_time_and_no_more(students, minutes, epoch, processes):
    seconds = 60 * minutes
    begun = affordable(students, seconds, epoch=epoch, processes=processes)
    made = rungs(begun, [minutes], processes=processes)
    assert len(made) == len(ROUND_SHARES)
    first, second, third, last = (rung.students for rung in made)
    assert first == begun <= students
    an_epoch_each = processes * int(ROUND_SHARES[0] * seconds / epoch)
    assert begun >= min(students, 3, an_epoch_each), "one of each kind of nets, where there is time for it"
    assert second == max(first // KEPT, min(first, 3))
    assert third == min(first, 3), "the best of each kind of nets among them"
    assert last == 1
    assert [rung.rounded for rung in made] == [False, False, False, True]
    assert taken(made, processes) == pytest.approx(seconds, abs=0.1)
    if first > processes:
        assert made[0].seconds >= (LEAST_EPOCHS if first > 3 else 1) * epoch - 1e-3


@given(st.integers(1, 40), st.lists(st.floats(0.01, 80), min_size=1, max_size=4, unique=True).map(sorted), st.integers(1, 8))
def test_what_is_given_again_is_used_and_changes_nothing_before_it(students, minutes, processes):
    made = rungs(students, minutes, processes=processes)
    assert made[: len(ROUND_SHARES)] == rungs(students, minutes[:1], processes=processes)
    assert taken(made, processes) == pytest.approx(60 * minutes[-1], abs=0.1)
    more = made[len(ROUND_SHARES) :]
    assert [(rung.students, rung.rounded) for rung in more] == [(min(students, 3), False), (1, True)] * (len(minutes) - 1)


def taken(made, processes):
    """Seconds of all rounds, one after the other."""
    return sum(rung.seconds * math.ceil(rung.students / processes) for rung in made)


def test_a_search_is_never_given_fewer_minutes(tmp_path):
    assert [granted(tmp_path, minutes) for minutes in (None, 6000.0, 5.0)] == [[10.0], [6000.0], [5.0]], "nothing is used yet"
    (tmp_path / "students.json").touch()
    assert [granted(tmp_path, minutes) for minutes in (None, 5.0, 7000.0, 7)] == [[5.0], [5.0], [5.0, 7000.0], [5.0, 7.0]]
    (tmp_path / "candidates").mkdir()
    (tmp_path / "candidates/mlp-h16-z4-b8-4.job.json").touch()
    for fewer in (5.0, 6.0):
        with pytest.raises(ValueError, match=rf"holds a search of 7 minutes, not {fewer:g}: give that or more, or another --out"):
            granted(tmp_path, fewer)
    assert [granted(tmp_path, minutes) for minutes in (None, 9.0)] == [[5.0, 7.0], [5.0, 7.0, 9.0]]


def test_what_learns_fast_does_not_push_out_every_other_kind():
    fast, faster, slow, dense = (
        Plan(net, (8,), width, 4, 8) for net, width in (("conv", 8), ("conv", 16), ("mobile", 8), ("mlp", 8))
    )
    assert leaders_first([faster, fast, slow]) == [faster, slow, fast]
    assert leaders_first([slow, faster, fast]) == [slow, faster, fast]
    assert leaders_first([faster, fast, slow, dense]) == [faster, slow, dense, fast]
