"""How the minutes of a search are shared."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_mvae.search.halving import KEPT, LEAST_EPOCHS, affordable, leaders_first, rounds
from pyro_mvae.search.plans import Plan
from pyro_mvae.search.rounds import RUNGS


@given(st.integers(1, 40), st.floats(0, 5000), st.floats(0.01, 10), st.integers(1, 8))
def test_rounds_use_the_time_and_no_more(students, seconds, epoch, processes):
    begun = affordable(students, seconds, epoch=epoch, processes=processes)
    made = rounds(begun, seconds, processes=processes)
    assert len(made) == len(RUNGS)
    first, second, third, last = (number for _, number in made)
    assert first == begun <= students
    assert second == max(first // KEPT, min(first, 3))
    assert third == min(first, 3), "the best of each kind of nets among them"
    assert last == 1
    assert sum(each * math.ceil(number / processes) for each, number in made) == pytest.approx(seconds, abs=0.1)
    if first > processes:
        assert made[0][0] >= LEAST_EPOCHS * epoch - 1e-3


def test_what_learns_fast_does_not_push_out_every_other_kind():
    fast, faster, slow, dense = (
        Plan(net, (8,), width, 4, 8) for net, width in (("conv", 8), ("conv", 16), ("mobile", 8), ("mlp", 8))
    )
    assert leaders_first([faster, fast, slow]) == [faster, slow, fast]
    assert leaders_first([slow, faster, fast]) == [slow, faster, fast]
    assert leaders_first([faster, fast, slow, dense]) == [faster, slow, dense, fast]
