"""What `evidence.collect` writes of an experiment, for those who read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.experiments.config import UNTRAINED

RESULTS = Path("evidence/results")
# Of all measures, those whose differences are kept, the one that decides first.
COMPARED = ("held_out/loss", "answers/exact_match", "untouched/loss")


def mean_of(found: Mapping[str, Any], measure: str, arm: str) -> float | None:
    """Return a mean over seeds.

    Args:
        found: what `collect` returns of an experiment.
        measure: its name.
        arm: name of an arm, or `UNTRAINED` for the value of the model before training.

    Returns:
        The mean; None where there is none.
    """
    of_measure = found["measures"].get(measure, {})
    mean: float | None = of_measure.get("arms", {}).get(arm, {}).get("mean")
    return of_measure.get("untrained") if arm == UNTRAINED else mean
