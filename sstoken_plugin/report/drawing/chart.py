"""Curves over one another as SVG, each told by a letter, a colour and a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sstoken_plugin.base.numbers import number
from sstoken_plugin.report.drawing.document import escaped

# User units of a chart; it is scaled to the width that it gets.
_WIDTH, _HEIGHT = 380, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 24, 10, 26
_TICKS = 5
# Between the letters at the ends of curves.
_LETTER = 12
# As the style sheet has them: every colour comes with every dash.
COLOURS, DASHES = 6, 2


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        letter: names it.
        place: of its colour and its dash, from 0 and below `COLOURS * DASHES`.
        steps: in ascending order.
        values: as many, finite.
    """

    letter: str
    place: int
    steps: Sequence[float]
    values: Sequence[float]


def chart(curves: Sequence[Curve], title: str, note: str = "", *, share: bool = False) -> str:
    """Return a figure; "" where no curve has two points. It needs the styles of drawing.css.

    Args:
        curves: those without a point are left out.
        title: what is drawn.
        note: a sentence below it.
        share: whether the axis goes from 0 to 1.
    """
    drawn = [curve for curve in curves if curve.steps]
    steps = [step for curve in drawn for step in curve.steps]
    if not any(len(set(curve.steps)) > 1 for curve in drawn):
        return ""
    values = [value for curve in drawn for value in curve.values] + ([0.0, 1.0] if share else [])
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or max(abs(high) * 0.1, 1e-3)
    low, high = low - room, high + room
    first, last = min(steps), max(steps)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(step: float) -> float:
        return round(_LEFT + (step - first) / (last - first) * (right - _LEFT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (bottom - _TOP), 1)

    parts = [f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>'
             f'<text class="tick" x="{_LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>'
             for tick in ticks(low, high)]  # fmt: skip
    parts += [f'<text class="tick" x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
              for tick in ticks(first, last) if tick == int(tick)]  # fmt: skip
    for curve, height in zip(drawn, _apart([y(curve.values[-1]) for curve in drawn]), strict=True):
        points = [(x(step), y(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
        line = " ".join(f"{across},{down}" for across, down in points)
        end = points[-1]
        parts.append(
            f'<g class="{tone(curve.place)}"><polyline class="curve" points="{line}"/>'
            f'<circle class="end" cx="{end[0]}" cy="{end[1]}" r="2.5"/>'
            f'<text class="letter" x="{end[0] + 5}" y="{height + 4}">{escaped(curve.letter)}</text></g>'
        )
    ends = ", ".join(f"{curve.letter} {number(curve.values[-1])}" for curve in drawn)
    below = f'<p class="note">{escaped(note)}</p>' if note else ""
    told = f"{title}, from step {first:g} to {last:g}; at the end: {ends}."
    return (
        f'<figure class="chart"><figcaption>{escaped(title)}</figcaption>'
        f'<p class="note">At the end: {escaped(ends)}</p>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{escaped(told)}</title>{"".join(parts)}</svg>'
        f"{below}</figure>"
    )


def key(place: int) -> str:
    """Return a sample of a curve's line."""
    return (
        f'<svg viewBox="0 0 24 8" class="key {tone(place)}" aria-hidden="true">'
        '<polyline class="curve" points="1,4 23,4"/></svg>'
    )


def tone(place: int) -> str:
    """Return the classes that give a curve its colour and its dash."""
    return f"colour-{place % COLOURS} dash-{place // COLOURS % DASHES}"


def ticks(low: float, high: float) -> list[float]:
    """Return some round numbers between two others."""
    step = 10 ** math.floor(math.log10((high - low) / _TICKS))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= _TICKS + 1), 10)
    first = math.ceil(low / step)
    # Rounded, so that 0.30000000000000004 is 0.3.
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def _apart(heights: Sequence[float]) -> list[float]:
    """Move letters down until none lies on another."""
    found = list(heights)
    below = -math.inf
    for place in sorted(range(len(found)), key=lambda index: heights[index]):
        found[place] = max(found[place], below + _LETTER)
        below = found[place]
    # Back into the chart from its lower edge, which letters may pass.
    over = below - (_HEIGHT - 4)
    return [height - over for height in found] if over > 0 else found
