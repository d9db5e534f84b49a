"""A plot of means with their intervals, as SVG: a row each, a dot for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sstoken_plugin.experiments.statistics import Interval
from sstoken_plugin.report.drawing.chart import ticks
from sstoken_plugin.report.drawing.document import escaped

_WIDTH, _LEFT, _RIGHT = 720, 210, 20
_TOP, _ROW, _BOTTOM = 8, 30, 34
_MOST_LETTERS = 30


@dataclass(frozen=True)
class Row:
    """One row of a plot.

    Attributes:
        label: untrusted text.
        interval: mean, and interval if it has one.
        values: of the seeds; those that are not finite are None.
        tone: "" or a class of the style sheet: "better", "worse".
    """

    label: str
    interval: Interval
    values: Sequence[float | None]
    tone: str = ""


def draw(rows: Sequence[Row], title: str, *, zero: bool = False) -> str:
    """Return an SVG element; it needs the styles of page.css.

    Args:
        rows: from the top.
        title: says what is drawn, for those who cannot see it.
        zero: whether 0 is on the axis, with a line through it.
    """
    known = [value for row in rows for value in (*row.values, row.interval.mean, row.interval.low, row.interval.high)]
    numbers = [value for value in known if value is not None]
    if not numbers:
        return ""
    if zero:
        numbers.append(0.0)
    low, high = min(numbers), max(numbers)
    # Of a single value, some room to either side.
    room = (high - low) * 0.04 or max(abs(high) * 0.1, 1e-3)
    low, high = low - room, high + room
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    bottom = height - _BOTTOM + 4
    parts = [f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{_TOP}" y2="{bottom}"/>'
             f'<text class="tick" x="{x(tick)}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>'
             for tick in ticks(low, high)]  # fmt: skip
    if zero:
        parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="{_TOP}" y2="{bottom}"/>')
    for place, row in enumerate(rows):
        parts.append(_row(row, _TOP + _ROW * (place + 0.5), x))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" class="intervals"><title>{escaped(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _row(row: Row, y: float, x: object) -> str:
    assert callable(x)
    shown = row.label if len(row.label) <= _MOST_LETTERS else f"{row.label[: _MOST_LETTERS - 1]}…"
    parts = [f'<text class="label" x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escaped(shown)}</text>']
    if row.interval.low is not None and row.interval.high is not None:
        parts.append(f'<line class="reach" x1="{x(row.interval.low)}" x2="{x(row.interval.high)}" y1="{y}" y2="{y}"/>')
    parts += [f'<circle class="seed" cx="{x(value)}" cy="{y}" r="3"/>' for value in row.values if value is not None]
    if row.interval.mean is not None:
        parts.append(
            f'<line class="mean" x1="{x(row.interval.mean)}" x2="{x(row.interval.mean)}" y1="{y - 8}" y2="{y + 8}"/>'
        )
    return f'<g class="row {row.tone}">{"".join(parts)}</g>'
