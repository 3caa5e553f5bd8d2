from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mvae.data.holdout import SHARE, held_out, rank


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(st.binary(max_size=2), min_size=2), seed=st.integers(-5, 5))
def test_equal_keys_are_on_one_side_and_neither_is_empty(keys, seed):
    if len(set(keys)) < 2:
        with pytest.raises(ValueError, match="expected at least 2"):
            held_out(keys, seed=seed)
        return
    sides = held_out(keys, seed=seed)
    assert set(sides) == {True, False}
    assert len(set(zip(keys, sides, strict=True))) == len(set(keys))


@pytest.mark.parametrize("tested", [True, False])
def test_one_is_moved_when_the_hash_puts_all_on_one_side(tested):
    keys = [b"a", b"b"]
    seed = next(seed for seed in range(10_000) if all((rank(key, seed=seed) < SHARE) == tested for key in keys))
    assert sorted(held_out(keys, seed=seed)) == [False, True]


def test_a_tenth_is_held_out():
    sides = held_out([str(number).encode() for number in range(10_000)])
    assert 900 < sum(sides) < 1100


def test_the_split_of_a_released_version_stays():
    assert rank(b"1f600") == pytest.approx(0.18975492121750293)
    assert rank(b"1f600", seed=1) == pytest.approx(0.38966844886556373)
