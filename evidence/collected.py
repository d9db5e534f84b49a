"""What `evidence.collect` writes of an experiment, for those who read it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.experiments.config import UNTRAINED
from sstoken_plugin.experiments.results import read_json

RESULTS = Path("evidence/results")
# Of all measures, those whose differences are kept, the one that decides first.
COMPARED = ("held_out/loss", "answers/exact_match", "untouched/loss")
_KEYS = {"settings", "versions", "measures", "comparisons", "arms"}


def read_collected(name: str, results: Path) -> dict[str, Any]:
    """Return what `collect` wrote of an experiment.

    Args:
        name: of the experiment.
        results: folder of the files.

    Raises:
        ValueError: there is no such file, or it is another one.
    """
    file = results / f"{name}.json"
    found = read_json(file)
    if found is None or not found.keys() >= _KEYS:
        raise ValueError(f"{file} is no file of evidence.collect; name the folder that holds them with --results.")
    return found


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


def decisive(settings: Mapping[str, Any], arms: Collection[str]) -> dict[str, Any]:
    """Return the part of settings that the results of some arms depend on."""
    own = {arm: settings["arms"][arm] for arm in sorted(arms)}
    return {"base": settings["base"], "evaluations": settings["evaluations"], "arms": own}
