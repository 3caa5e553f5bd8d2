"""Which pictures are held out for testing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SHARE = 0.1


def rank(key: bytes, *, seed: int = 0) -> float:
    """Return a number in [0, 1) that depends on the key and the seed alone; those below `SHARE` are held out.

    Example:
        >>> rank(b"1f600") == rank(b"1f600"), rank(b"1f600") == rank(b"1f600", seed=1)
        (True, False)
    """
    digest = hashlib.sha256(f"{seed}:".encode() + key).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def held_out(keys: Sequence[bytes], *, seed: int = 0) -> list[bool]:
    """Say of each key whether it is for testing; equal keys are on one side, and neither side is empty.

    Raises:
        ValueError: when there are fewer than two different keys.

    Example:
        >>> sides = held_out([b"a", b"b", b"a"])
        >>> sides[0] == sides[2] != sides[1]
        True
    """
    ranks = {key: rank(key, seed=seed) for key in keys}
    if len(ranks) < 2:
        raise ValueError(f"{len(ranks)} different picture, expected at least 2: one to train on and one to test with")
    ordered = sorted(ranks, key=lambda key: ranks[key])
    test = sum(value < SHARE for value in ranks.values())
    chosen = set(ordered[: min(max(test, 1), len(ordered) - 1)])
    return [key in chosen for key in keys]
