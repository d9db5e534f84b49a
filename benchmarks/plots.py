"""Draw what was measured, outputs/benchmarks/NAME.json, as docs/performance-NAME.svg: step, growth, rivals, profile.

    python benchmarks/plots.py

Every ratio is to plain Axolotl. Of each time the median is drawn, and the range and
the single values over the pairs, which is the noise. Needs matplotlib: pip install '.[bench]'.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT

DOCS = ROOT / "docs"
TIME, MEMORY, LINE, FAINT = "#0072B2", "#D55E00", "#333333", "#DDDDDD"
TIME_TITLE, MEMORY_TITLE = "time, plain = 1", "peak memory, plain = 1"
SIDES = {"plugin": "this plugin, cache filled", "authors": "ssToken, authors' way", "RHO-1": "RHO-1, second model"}
VARIABLES = {
    "tokens": "tokens of a row",
    "vocabulary": "vocabulary",
    "ratio": "ratio of tokens kept",
    "prompt": "prompt, share of a sample",
}
# Of a step, in the order of its bar, with colours: forward pale, backward dark.
PARTS = {
    "linear layers, forward": "#9ECAE1",
    "linear layers, backward": "#3182BD",
    "adapter, forward": "#A1D99B",
    "adapter, backward": "#31A354",
    "attention, forward": "#BCBDDC",
    "attention, backward": "#756BB1",
    "norms, activations, the rest, forward": "#D9D9D9",
    "norms, activations, the rest, backward": "#969696",
    "output head and loss": "#D55E00",
    "history's forward pass": "#F0E442",
    "selection": "#000000",
    "optimizer": "#CC79A7",
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "savefig.facecolor": "white",
    # The same figures give the same file.
    "svg.hashsalt": "sstoken",
}

Rows = dict[str, dict[str, Any]]


def single_ratios(row: dict[str, Any]) -> list[float]:
    """Return the time ratio of every pair of steps."""
    own = next(seconds for side, seconds in row["seconds"].items() if side != "plain")
    return [taken / plain for plain, taken in zip(row["seconds"]["plain"], own, strict=True)]


def draw_times(axes: Any, places: list[float], rows: list[dict[str, Any]], *, upright: bool) -> None:
    """Draw time ratios at places on one axis: the median as a point, the range as a band, each pair as a dot.

    Args:
        axes: matplotlib's.
        places: of each row.
        rows: those of a file.
        upright: whether ratios go up, and not to the right.
    """
    for place, row in zip(places, rows, strict=True):
        figures, each = row["time_ratio"], single_ratios(row)
        for ratios, style in (
            ([figures["min"], figures["max"]], {"lw": 7, "alpha": 0.25, "solid_capstyle": "butt"}),
            (each, {"ls": "", "marker": "o", "ms": 3, "mew": 0}),
            ([figures["median"]], {"ls": "", "marker": "o", "ms": 7, "mec": "white"}),
        ):
            at = [place] * len(ratios)
            axes.plot(*((at, ratios) if upright else (ratios, at)), color=TIME, **style)


def draw_table(names: list[str], rows: list[dict[str, Any]]) -> Any:
    """Return a figure of a line for each row: time on the left, memory on the right."""
    from matplotlib.figure import Figure

    height = 1.3 + 0.34 * len(rows)
    figure = Figure(figsize=(9, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = [float(place) for place in range(len(rows))]
    draw_times(left, places, rows, upright=False)
    memory = [row["memory_ratio"] for row in rows]
    right.scatter(memory, places, s=36, color=MEMORY, marker="s")
    for axes, title, values, ends in (
        (left, TIME_TITLE, [row["time_ratio"]["median"] for row in rows], [row["time_ratio"]["max"] for row in rows]),
        (right, MEMORY_TITLE, memory, memory),
    ):
        axes.set_title(title, loc="left")
        axes.axvline(1, color=LINE, lw=1, ls="--", zorder=0)
        axes.grid(axis="y", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.2)
        for place, value, end in zip(places, values, ends, strict=True):
            axes.annotate(
                f"{value:.2f}", (end, place), (8, 0), textcoords="offset points", va="center", fontsize=8,
                # The line at 1 may pass here.
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
    left.set_yticks(places, names)
    left.invert_yaxis()
    return figure


def draw_step(rows: Rows) -> Any:
    """Return the figure of step.json: every row that has a time and a memory."""
    both = {name: row for name, row in rows.items() if "time_ratio" in row and "memory_ratio" in row}
    return draw_table(list(both), list(both.values()))


def draw_rivals(rows: Rows) -> Any:
    """Return the figure of rivals.json."""
    return draw_table([f"{row['size']}: {SIDES[row['side']]}" for row in rows.values()], list(rows.values()))


def draw_growth(rows: Rows) -> Any:
    """Return the figure of growth.json: a column for each variable, time above memory."""
    from matplotlib.figure import Figure

    measured = {row["variable"] for row in rows.values()}
    variables = [name for name in VARIABLES if name in measured]
    figure = Figure(figsize=(1.5 + 2.5 * len(variables), 5), layout="constrained")
    grid = figure.subplots(2, len(variables), sharex="col", sharey="row", squeeze=False)
    for (above, below), variable in zip(grid.T, variables, strict=True):
        points = sorted((row for row in rows.values() if row["variable"] == variable), key=lambda row: row["value"])
        values = [row["value"] for row in points]
        above.plot(values, [row["time_ratio"]["median"] for row in points], color=TIME, lw=1)
        draw_times(above, values, points, upright=True)
        below.plot(values, [row["memory_ratio"] for row in points], color=MEMORY, lw=1, marker="s", ms=5)
        for axes in (above, below):
            axes.axhline(1, color=LINE, lw=1, ls="--", zorder=0)
            axes.grid(axis="y", color=FAINT, lw=0.6)
            axes.margins(x=0.12, y=0.15)
        if variable in ("tokens", "vocabulary"):
            below.set_xscale("log", base=2)
        below.set_xticks(values, [f"{value / 1000:.0f}k" if value > 9999 else f"{value:g}" for value in values])
        below.minorticks_off()
        below.set_xlabel(VARIABLES[variable])
    grid[0, 0].set_ylabel(TIME_TITLE)
    grid[1, 0].set_ylabel(MEMORY_TITLE)
    return figure


def draw_profile(rows: Rows) -> Any:
    """Return the figure of profile.json: a bar for each side, of the parts of its step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.8 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for part, colour in PARTS.items():
        seconds = [row.get(part, 0) for row in rows.values()]
        before = [sum(row.get(name, 0) for name in list(PARTS)[: list(PARTS).index(part)]) for row in rows.values()]
        axes.barh(list(rows), seconds, left=before, color=colour, label=part, height=0.6)
    axes.invert_yaxis()
    axes.set_title("seconds of operators in a step", loc="left")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower left", ncols=3, fontsize=7, frameon=False)
    return figure


PICTURES: dict[str, Callable[[Rows], Any]] = {
    "step": draw_step,
    "growth": draw_growth,
    "rivals": draw_rivals,
    "profile": draw_profile,
}


def caption(machine: dict[str, str], rows: Rows) -> str:
    """Return what is drawn, and what it depends on."""
    counts = sorted({len(single_ratios(row)) for row in rows.values() if "time_ratio" in row})
    pairs = " to ".join(str(count) for count in dict.fromkeys((*counts[:1], *counts[-1:])))
    software = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("cpu", "cores"))
    words = f"{machine['cpu']}, {machine['cores']} cores; {software}."
    if counts:
        words = f"Time: median of {pairs} pairs of steps or runs, their range (band) and each pair (dots). {words}"
    return "\n".join(textwrap.wrap(words, 120))


def draw(name: str, results: Path = RESULTS, pictures: Path = DOCS) -> Path | None:
    """Draw a file of results and return the picture; None where that is not possible, which is said.

    Args:
        name: of the results, see `PICTURES`.
        results: folder of the JSON files.
        pictures: folder of the pictures.
    """
    if find_spec("matplotlib") is None:
        print(f"Not drawn: {name} (pip install '.[bench]')")
        return None
    file = results / f"{name}.json"
    if not file.exists():
        print(f"Not drawn: {name} (there is no {file})")
        return None
    from matplotlib import rc_context

    found = json.loads(file.read_text())
    picture = pictures / f"performance-{name}.svg"
    with rc_context(STYLE):
        figure = PICTURES[name](found["rows"])
        figure.supxlabel(caption(found["machine"], found["rows"]), fontsize=7, color="#666666", x=0.01, ha="left")
        figure.savefig(picture, metadata={"Date": None})
    print(f"Drawn: {picture}")
    return picture


if __name__ == "__main__":
    for each in PICTURES:
        draw(each)
