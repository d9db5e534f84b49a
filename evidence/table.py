"""Print experiments beside one another: what each arm ends at, and whether it helps, by the rule of docs/evidence.md.

    python -m evidence.table new-noise20-confirmation known-noise20-confirmation half-noise20-confirmation

Reads what `evidence.collect` wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.arms import AGAINST
from evidence.collected import COMPARED, RESULTS, mean_of, read_collected
from sstoken_plugin.experiments.config import UNTRAINED
from sstoken_plugin.experiments.statistics import HELPS, HURTS

# What decides, and what is shown beside it where an experiment has it.
_DECIDES, _MATCH = COMPARED[:2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of what the command line names."""
    parser = argparse.ArgumentParser(description="Print experiments beside one another, from their results.")
    parser.add_argument("names", nargs="+", metavar="NAME", help="of an experiment")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    asked = parser.parse_args(arguments)
    try:
        print(as_markdown({name: read_collected(name, asked.results) for name in asked.names}))
    except ValueError as error:
        raise SystemExit(str(error)) from error


def as_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table: a row for the untrained model and for each arm that has a result, a column for each experiment.

    Args:
        found: what `collect` wrote of each, by name.
    """
    arms = dict.fromkeys([UNTRAINED, *(arm for each in found.values() for arm in each["measures"][_DECIDES]["arms"])])
    cells = {arm: [_cell(each, arm) for each in found.values()] for arm in arms}
    rows = [["arm", *found], ["---"] * (len(found) + 1)]
    rows += [[arm, *own] for arm, own in cells.items() if any(own)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(found: Mapping[str, Any], arm: str) -> str:
    """Return an arm's mean loss, its verdict, and the share of right greedy answers."""
    loss = mean_of(found, _DECIDES, arm)
    if loss is None:
        return ""
    match = mean_of(found, _MATCH, arm)
    told = "" if match is None else f", {match:.0%} right"
    return f"{loss:.3f}{verdict(found, arm)}{told}"


def verdict(found: Mapping[str, Any], arm: str) -> str:
    """Return " **helps**" if an arm beats each of `AGAINST`, " **hurts**" if plain training beats it, or ""."""
    told = {each["against"]: each["verdict"] for each in found["comparisons"][_DECIDES] if each["arm"] == arm}
    if told and all(told.get(other) == HELPS for other in AGAINST):
        return f" **{HELPS}**"
    return f" **{HURTS}**" if told.get(AGAINST[0]) == HURTS else ""


if __name__ == "__main__":
    main()
