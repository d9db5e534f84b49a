"""Put the results of experiments together: a small JSON file each, and a table for docs/evidence.md.

    python -m evidence.collect .cache/evidence/known-truth/experiments/*.yaml > table.md

Means, paired differences and intervals are those of the harness, see docs/experiments.md; of the noise, see
`evidence.noise`, the mean over seeds is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evidence.base import MADE
from evidence.collected import COMPARED, RESULTS, mean_of, other_settings, rounded
from evidence.noise import NAME as NOISE
from sstoken_plugin.experiments.comparison import Table, tables_of
from sstoken_plugin.experiments.config import read
from sstoken_plugin.experiments.numbers import comparisons_json, settings_of
from sstoken_plugin.experiments.results import read_json
from sstoken_plugin.experiments.runs import Run, runs_of, untrained_of

# Of a point of the noise, what a mean over seeds says something of.
_CURVES = ("last_step", "precision", "recall", "noise_among_kept", "auc", "auc_in_sample")
_NONE = "–"  # noqa: RUF001


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect what the command line names."""
    parser = argparse.ArgumentParser(description="Put the results of experiments together.")
    parser.add_argument("experiments", type=Path, nargs="+", help="their YAML files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files (%(default)s)")
    parser.add_argument("--replace", action="store_true", help="also files that hold runs which are not here")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    for file in asked.experiments:
        found = collect(file)
        if not found["runs"]:
            print(f"{file.stem}: no run of these settings has a result in its folder.\n")
            continue
        into = asked.out / f"{file.stem}.json"
        if not asked.replace and (reason := _lost(read_json(into) or {}, found)):
            print(f"{into} {reason}, and stays as it is; replace it with --replace.", file=sys.stderr)
        else:
            into.write_text(as_json(rounded(found)) + "\n", encoding="utf-8")
        print(f"{as_markdown(file.stem, found)}\n")


def collect(file: Path) -> dict[str, Any]:
    """Return everything that is known of an experiment.

    Args:
        file: its YAML.

    Returns:
        `settings`: see docs/experiments.md; `base`: see `base.make`; `runs`: how many have a result, of `runs_asked`;
        `versions`, all that occur; `measures`: by measure, `better`, the value of the `untrained` model, and by arm
        `seeds`, `values` and their mean with its interval; `comparisons`: by measure, of `COMPARED`; `arms`: by arm the
        mean over seeds of seconds, of the logged metrics of the selection, and of what `evidence.noise` measures, with
        the points of each quantity as a list; None where there is no selection.
    """
    experiment = read(file)
    runs = runs_of(experiment)
    done = [(run, result) for run in runs if (result := run.result()) is not None]
    tables = tables_of(experiment, [result for _, result in done], untrained_of(experiment).result())
    versions: dict[str, set[str]] = {}
    for _, result in done:
        for name, version in result.versions.items():
            versions.setdefault(name, set()).add(version)
    arms = {}
    for arm in experiment.arms:
        own = [(run, result) for run, result in done if run.arm.name == arm.name]
        arms[arm.name] = {
            "seconds": mean([result.seconds for _, result in own]),
            "train_seconds": mean([result.train_seconds for _, result in own]),
            "kept": mean([dict(result.kept) for _, result in own]),
            "noise": mean([noise for run, _ in own if (noise := noise_of(run)) is not None]),
        }
    return {
        "settings": settings_of(experiment),
        "base": read_json(Path(str(experiment.base["base_model"])) / MADE),
        "runs": len(done),
        "runs_asked": len(runs),
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "measures": {table.name: _measure(table) for table in tables},
        "comparisons": {table.name: comparisons_json(table) for table in tables if table.name in COMPARED},
        "arms": arms,
    }


def _lost(before: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Say what of a file of results is not in what was found; "" where all of it is."""
    if not before:
        return ""
    if before["base"] != rounded(found["base"]):
        return "is of another base model"
    if told := other_settings(before["settings"], found["settings"]):
        return f"is of other settings ({told})"
    runs, here = (
        {f"{arm}, seed {seed}" for arm, of_arm in measured.get("arms", {}).items() for seed in of_arm["seeds"]}
        for measured in (each["measures"].get(COMPARED[0], {}) for each in (before, found))
    )
    lost = sorted(runs - here)
    more = f" and {len(lost) - 1} more" if lost[1:] else ""
    return f"holds runs that have no result here ({lost[0]}{more})" if lost else ""


def noise_of(run: Run) -> dict[str, Any] | None:
    """Return what was measured of the noise in a run, with its points as `curves`.

    None where nothing was, or not from the first step on: the run was resumed, and its points are not those of others.
    """
    found = read_json(run.folder / "out" / NOISE)
    if found is None or found["points"][0]["first_step"] != 1:
        return None
    return {**found, "points": curves(found["points"])}


def curves(points: Sequence[Mapping[str, Any]], names: Sequence[str] = _CURVES) -> dict[str, Any]:
    """Turn points with numbers into numbers by point: a list each, None where it was measured at no point."""
    found: dict[str, Any] = {}
    for name in names:
        values = [point.get(name) for point in points]
        if isinstance(values[0], Mapping):
            found[name] = curves([dict(value or {}) for value in values], list(values[0]))
        else:
            found[name] = None if all(value is None for value in values) else values
    return found


def _measure(table: Table) -> dict[str, Any]:
    arms = {
        arm: {"seeds": list(table.seeds[arm]), "values": list(table.values[arm]), **asdict(interval)}
        for arm, interval in table.means.items()
    }
    return {"words": table.words, "better": table.better, "untrained": table.untrained, "arms": arms}


def mean(found: Sequence[Any]) -> Any:
    """Return the mean over seeds of numbers, or of each number in mappings and lists of the same form.

    Values that are None count nowhere; where all are, or there is none, the mean is None. Of lists that differ in
    length the ends are left out that not all have.
    """
    there = [one for one in found if one is not None]
    if not there:
        return None
    first = there[0]
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for one in there for name in one)
        return {name: mean([one.get(name) for one in there]) for name in names}
    if isinstance(first, list):
        return [mean(ones) for ones in zip(*there, strict=False)]
    return sum(there) / len(there)


def as_json(value: Any, indent: int = 0) -> str:
    """Return JSON with a line for each innermost list or mapping.

    Raises:
        ValueError: a number in it is not finite.
    """
    parts = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []
    if not any(isinstance(part, Mapping | list) for part in parts):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, Mapping) else [""] * len(parts)
    begin, end = "{}" if isinstance(value, Mapping) else "[]"
    edge = f"\n{' ' * indent}"
    lines = [f"{edge} {name}{as_json(part, indent + 1)}" for name, part in zip(names, parts, strict=True)]
    return f"{begin}{','.join(lines)}{edge}{end}"


def as_markdown(name: str, found: Mapping[str, Any]) -> str:
    """Return an experiment as a table: an arm a row."""
    deciding, *shown = COMPARED
    against = found["settings"]["against"]
    head = ["arm", "held-out loss", *(f"minus {other}" for other in against), "exact match", "untouched task, loss"]
    head += ["noise dropped", "noise among kept", "AUC of REL"]
    lines = [f"### {name}: {found['runs']} of {found['runs_asked']} runs", ""]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for arm, also in found["arms"].items():
        whole = (also["noise"] or {}).get("whole", {})
        cells = [arm, _number(mean_of(found, deciding, arm), 3)]
        cells += [_difference(found, deciding, arm, other) for other in against]
        cells += [_number(mean_of(found, measure, arm), 3) for measure in shown]
        cells += [_percent(whole.get(key)) for key in ("recall", "noise_among_kept")]
        cells.append(_number((whole.get("auc") or {}).get("rel"), 2))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(found: Mapping[str, Any], measure: str, arm: str, other: str) -> str:
    for each in found["comparisons"].get(measure, ()):
        if (each["arm"], each["against"]) == (arm, other) and each["difference"] is not None:
            reach = f" ({each['low']:+.3f} to {each['high']:+.3f})" if each["low"] is not None else ""
            told = f"**{each['verdict']}** " if each["verdict"] in ("helps", "hurts") else ""
            return f"{told}{each['difference']:+.3f}{reach}"
    return _NONE


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
