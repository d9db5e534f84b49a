"""Numbers for people."""

from __future__ import annotations


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a number for people; None is a dash."""
    if value is None:
        return "–"  # noqa: RUF001
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:{'+' if signed else ''}.2g}"
    digits = 1 if size >= 100 else 3 if size >= 1 else 4
    return f"{value:{'+' if signed else ''}.{digits}f}"
