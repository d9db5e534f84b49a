"""What `evidence.collect` writes of an experiment, for those who read it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.experiments.config import UNTRAINED
from sstoken_plugin.experiments.results import read_json
from sstoken_plugin.experiments.runs import differences

RESULTS = Path("evidence/results")
# Of all measures, those whose differences are kept, the one that decides first.
COMPARED = ("held_out/loss", "answers/exact_match", "untouched/loss")
# Significant digits of a number in a file.
_DIGITS = 5
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


def other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what differs, of that which the results of common arms depend on, between two settings; "" if nothing."""
    arms = before["arms"].keys() & now["arms"].keys()
    return "; ".join(differences(*(_decisive(rounded(each), arms) for each in (before, now))))


def _decisive(settings: Mapping[str, Any], arms: Collection[str]) -> dict[str, Any]:
    """Return the part of settings that the results of some arms depend on."""
    own = {arm: settings["arms"][arm] for arm in sorted(arms)}
    return {"base": settings["base"], "evaluations": settings["evaluations"], "arms": own}


def rounded(value: Any) -> Any:
    """Return JSON with numbers of a few significant digits; whole numbers stay."""
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e9 else float(f"{value:.{_DIGITS}g}")
    return value
