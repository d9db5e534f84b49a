"""Settings and numbers of an experiment, as its files have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.experiments.comparison import Table
from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.experiments.runs import plain


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as its YAML would have it, but for what speaks to others: pages are shown around."""
    found = {
        "base": axolotl.that_can_be_shown(experiment.base),
        "arms": {
            arm.name: {"sstoken": arm.sstoken, "changes": axolotl.that_can_be_shown(arm.changes)}
            for arm in experiment.arms
        },
        "seeds": list(experiment.seeds),
        "evaluations": {name: asked.model_dump() for name, asked in experiment.evaluations.items()},
        "against": list(experiment.against),
        "smallest_difference": experiment.smallest_difference,
    }
    return plain(found)


def as_json(experiment: Experiment, tables: Sequence[Table]) -> dict[str, Any]:
    """Return all numbers of the tables."""
    return {
        "settings": settings_of(experiment),
        "tables": [
            {
                "measure": table.name, "words": table.words, "better": table.better, "untrained": table.untrained,
                "arms": {arm: {"seeds": list(table.seeds[arm]), "values": list(table.values[arm]), **asdict(mean)}
                         for arm, mean in table.means.items()},
                "comparisons": comparisons_json(table),
            }
            for table in tables
        ],
    }  # fmt: skip


def comparisons_json(table: Table) -> list[dict[str, Any]]:
    """Return the comparisons of a table."""
    return [
        {
            "arm": each.arm,
            "against": each.against,
            "difference": each.difference.mean,
            "low": each.difference.low,
            "high": each.difference.high,
            "verdict": each.verdict,
            "seeds": each.difference.count,
            "comparisons_together": each.family,
            "low_alone": each.alone.low,
            "high_alone": each.alone.high,
            "seeds_to_tell": each.to_tell,
            "seeds_to_tell_smallest": each.to_tell_smallest,
        }
        for each in table.comparisons
    ]
