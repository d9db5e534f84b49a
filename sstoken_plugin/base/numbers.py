"""Numbers for people."""

from __future__ import annotations

import math
import sys
from typing import Any

# Of a share that is nearly nothing or nearly all: more than a float has.
MOST_DIGITS = 15


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, and no whole number beyond what a float holds."""
    # Compared, since `math.isfinite` raises an error on such a whole number.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a number for people; None is a dash."""
    if value is None:
        return "–"  # noqa: RUF001
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:{'+' if signed else ''}.2g}"
    digits = 1 if size >= 100 else 3 if size >= 1 else 4
    return f"{value:{'+' if signed else ''}.{digits}f}"


def percent(share: float, digits: int | None = None, *, space: str = "") -> str:
    """Return a share in percent; what is neither nothing nor all is never rounded to 0 % or 100 %.

    Its twin is in report/page/text.js.

    Args:
        share: 0 to 1.
        digits: behind the point; None for one below 10 % and none from there on.
        space: what stands before the sign.
    """
    digits = int(0 < share < 0.0995) if digits is None else digits
    rounded = _half_up(100 * share, digits)
    while 0 < share < 1 and not 0 < rounded < 100 and digits < MOST_DIGITS:
        digits += 1
        rounded = _half_up(100 * share, digits)
    return f"{rounded:.{digits}f}{space}%"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 sample", "2,000 samples"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _half_up(value: float, digits: int) -> float:
    # As JavaScript rounds; Python's own rounding takes a half to the even digit.
    power = 10.0**digits
    return math.floor(value * power + 0.5) / power
