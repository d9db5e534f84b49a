"""Print what is dropped of the noise over the runs of an experiment: recall and precision at some of its points.

    python -m evidence.course new-noise20 --arms warmup-all threshold-0.01 random

Reads what `evidence.collect` wrote. A point is the mean over some steps, see `evidence.noise`, and over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.collected import RESULTS, read_collected

# Of 20: the first, the last of a warm-up of a fifth, the first after it, one in the middle, the last.
_POINTS = (0, 3, 4, 9, 19)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of what the command line names."""
    parser = argparse.ArgumentParser(description="Print what is dropped of the noise over the runs.")
    parser.add_argument("name", help="of an experiment")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="those to show (all in which noise was measured)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    asked = parser.parse_args(arguments)
    try:
        print(as_markdown(read_collected(asked.name, asked.results), asked.arms))
    except ValueError as error:
        raise SystemExit(str(error)) from error


def as_markdown(found: Mapping[str, Any], arms: Sequence[str] | None = None) -> str:
    """Return the table: a row for each arm, a column for each point, in it recall and precision.

    Args:
        found: what `collect` wrote.
        arms: their names; None for all of which there is anything.

    Raises:
        ValueError: of an arm there is nothing.
    """
    points = {arm: also["noise"]["points"] for arm, also in found["arms"].items() if also["noise"]}
    unknown = [arm for arm in arms or () if arm not in points]
    if unknown or not points:
        raise ValueError(f"There is nothing of the noise of: {', '.join(unknown) or 'any arm'}.")
    steps = next(iter(points.values()))["last_step"]
    shown = [place for place in _POINTS if place < len(steps)]
    begin = [1, *(step + 1 for step in steps)]
    rows = [["arm", *(f"steps {begin[place]} to {steps[place]}" for place in shown)], ["---"] * (len(shown) + 1)]
    rows += [[arm, *(_cell(points[arm], place) for place in shown)] for arm in arms or points]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(points: Mapping[str, Any], place: int) -> str:
    recall, precision = (points[name][place] if points[name] else None for name in ("recall", "precision"))
    if precision is None:
        return "nothing dropped"
    return f"no noise, {precision:.0%}" if recall is None else f"{recall:.0%}, {precision:.0%}"


if __name__ == "__main__":
    main()
