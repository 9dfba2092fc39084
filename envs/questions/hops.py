"""The number of hops of a question, as files write it: 2, 2.0, "2", or nothing."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

_DIGITS = re.compile(r"\s*([0-9]{1,9})(?:\.0*)?\s*")
_NOTHING = ("", "nan")
_LARGEST = 10**9


def hops_of(value: Any) -> int | None:
    """Return a number of hops, None where a cell is empty.

    >>> hops_of("2"), hops_of(3.0), hops_of(" "), hops_of(float("nan"))
    (2, 3, None, None)

    Raises:
        ValueError: it is something else.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return None
    if isinstance(value, str) and (written := _DIGITS.fullmatch(value)):
        return int(written[1])
    if not isinstance(value, bool) and isinstance(value, Real):
        number = _float(value)
        if math.isnan(number):
            return None
        if number.is_integer() and 0 <= number < _LARGEST:
            return int(number)
    raise ValueError(f"hops must be a whole number, got {str(value)[:60]!r}")


def _float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf


def known_hops(value: Any) -> int | None:
    """Return a number of hops, None also where a stored row holds what is none."""
    try:
        return hops_of(value)
    except ValueError:
        return None
