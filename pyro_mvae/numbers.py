"""Settings that have to be numbers, and what is said of those that are not."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def number(value: Any, name: str) -> float:
    """A setting that is a number.

    Raises:
        ValueError: for anything else, no number (NaN) included.

    Example:
        >>> number(3, "patience")
        3
    """
    if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(value):
        raise ValueError(f"{name} is {value!r}, expected a number")
    return value  # pyright: ignore[reportReturnType]


def above(value: Any, name: str, least: float = 0.0) -> None:
    """Raise a ValueError for what is no finite number above `least`."""
    if not least < number(value, name) < math.inf:
        raise ValueError(f"{name} is {value}, expected more than {least:g}{', and finite' if value == math.inf else ''}")


def at_least(value: Any, name: str, least: float = 0.0) -> float:
    """A setting that is a finite number of `least` or more; ValueError for anything else.

    Example:
        >>> at_least(0, "beta")
        0.0
    """
    if not least <= number(value, name) < math.inf:
        raise ValueError(f"{name} is {value}, expected a finite number, {least:g} or more")
    return float(value)


def count(value: Any, name: str, least: int = 1) -> None:
    """Raise a ValueError for what is no whole number of `least` or more."""
    if number(value, name) != int(min(max(value, -1), 2**53)) or value < least:
        raise ValueError(f"{name} is {value}, expected a whole number, {least} or more")
