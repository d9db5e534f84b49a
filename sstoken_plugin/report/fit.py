"""Keeps the page small whatever it is given, and says what that left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from sstoken_plugin.base.numbers import is_number
from sstoken_plugin.base.visible_text import cut
from sstoken_plugin.report.content import Breakdown

# Series of numbers, points of each, tables and rows of each.
MAX_SERIES = 60
MAX_POINTS = 500
MAX_TABLES = 12
MAX_ROWS = 400
MAX_LABEL = 60


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` of the indices below `count`: the first, the last, and evenly between."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [count - 1]
    return [round(index * (count - 1) / (wanted - 1)) for index in range(wanted)]


def choose(moments: int, sizes: Sequence[tuple[int, Sequence[int]]], small: int, room: int) -> tuple[list[int], int]:
    """Choose what fits: first fewer moments, down to first and last, then fewer samples, from the end.

    Moments keep the page small; a sample is left out only where it would be too large for a browser.

    Args:
        moments: how many there are.
        sizes: of each sample, the bytes of what is the same at every moment, and of each moment.
        small: bytes that moments may fill.
        room: bytes that samples may.

    Returns:
        Indices of the moments that stay, and how many samples do.
    """

    def used(chosen: Sequence[int]) -> list[int]:
        """Bytes up to and with each sample."""
        return list(accumulate(fixed + sum(each[index] for index in chosen) for fixed, each in sizes))

    chosen = list(range(moments))
    while len(chosen) > 2 and sizes and used(chosen)[-1] > small:
        chosen = spread(moments, len(chosen) - 1)
    return chosen, sum(total <= room for total in used(chosen))


def series(log: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[list[float]]], int]:
    """Return the numbers of a log by name, [steps, values], thinned out evenly, and how many names there are in all."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        if not is_number(line.get("step")):
            continue
        for name, value in line.items():
            if name != "step" and is_number(value):
                found.setdefault(cut(str(name), MAX_LABEL), []).append((line["step"], value))
    drawn = {}
    for name, points in list(found.items())[:MAX_SERIES]:
        kept = [points[index] for index in spread(len(points), MAX_POINTS)]
        drawn[name] = [[step for step, _ in kept], [float(f"{value:.6g}") for _, value in kept]]
    return drawn, len(found)


def points(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return the steps and values of one number of a log, in the order of its lines."""
    return [(line["step"], line[name]) for line in log if is_number(line.get("step")) and is_number(line.get(name))]


def mean_over_steps(log: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean of one number of a training's log over its steps; None where no line has it.

    A line counts for the steps since the training's line before it: of twenty steps with `logging_steps: 10` and
    `logging_first_step: true` the first line is of one.
    """
    total = weight = last = 0.0
    for line in log:
        if not (is_number(line.get("step")) and "loss" in line):
            continue
        steps, last = line["step"] - last, line["step"]
        if is_number(line.get(name)):
            total, weight = total + steps * line[name], weight + steps
    return total / weight if weight else None


def last_step(log: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the last step of a log; None where it has none."""
    return max((int(line["step"]) for line in log if is_number(line.get("step"))), default=None)


def table(breakdown: Breakdown) -> dict[str, Any]:
    """Return a breakdown in the page's terms: the rows seen most often, in their order."""
    rows = breakdown.rows
    often = sorted(range(len(rows)), key=lambda index: -rows[index][1])[:MAX_ROWS]
    return {
        "title": cut(breakdown.title, MAX_LABEL),
        "note": cut(breakdown.note),
        # Of all rows, those left out too.
        "seen": sum(seen for _, seen, _ in rows),
        "kept": sum(kept for _, _, kept in rows),
        "left_out": len(rows) - len(often),
        "rows": [[cut(rows[index][0], MAX_LABEL), rows[index][1], rows[index][2]] for index in sorted(often)],
    }
