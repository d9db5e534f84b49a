"""Go on with an experiment on another machine: give its finished runs their folders back, from what was collected.

    python -m evidence.real --data FOLDER
    axolotl train .cache/evidence/real/references/gemma3-short.yaml   # the model that its arm `reference` asks
    python -m evidence.restore .cache/evidence/real/experiments/gemma3-short-corrupt40.yaml
    python -m sstoken_plugin.experiments .cache/evidence/real/experiments/gemma3-short-corrupt40.yaml

Losses come back to the digits that a file of results has. What it has for an arm alone, the mean over its seeds, every
run of the arm gets: seconds, and the metrics of the selection. Versions are those of the whole experiment, and how many
steps a run had is not told. The model before training is measured anew. That model and data of the other machine were
those that are here is taken for granted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.collected import COMPARED, RESULTS, other_settings, read_collected
from sstoken_plugin.experiments.config import read
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.experiments.numbers import settings_of
from sstoken_plugin.experiments.results import Result, write_result
from sstoken_plugin.experiments.runs import Run, runs_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Restore what the command line names."""
    parser = argparse.ArgumentParser(description="Give runs of collected experiments their folders back.")
    parser.add_argument("experiments", type=Path, nargs="+", help="their YAML files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files (%(default)s)")
    asked = parser.parse_args(arguments)
    for file in asked.experiments:
        try:
            restored = restore(file, read_collected(file.stem, asked.results))
        except ValueError as error:
            raise SystemExit(str(error)) from error
        print(f"{file.stem}: {restored} runs restored.")


def restore(file: Path, found: Mapping[str, Any]) -> int:
    """Write the results of an experiment that were collected into the folders of their runs.

    Args:
        file: the YAML of the experiment.
        found: what `collect` wrote of it.

    Returns:
        How many; a run that has a result keeps it.

    Raises:
        ValueError: its runs or those in the folders had other settings, or they measured noise, of which there are
            means alone.
    """
    experiment = read(file)
    if told := other_settings(found["settings"], settings_of(experiment)):
        raise ValueError(f"{file} has other settings than its collected results ({told}); have its runs anew.")
    if any(also["noise"] for also in found["arms"].values()):
        raise ValueError(f"The results of {file} have means alone of the noise in its runs; have them anew.")
    lost = [run for run in runs_of(experiment) if run.result() is None and run.seed in _seeds(found, run)]
    for run in lost:
        run.refuse_other_settings()
        write_result(_result(found, run), run.folder)
    return len(lost)


def _seeds(found: Mapping[str, Any], run: Run) -> list[int]:
    seeds: list[int] = found["measures"][COMPARED[0]]["arms"].get(run.arm.name, {}).get("seeds", [])
    return seeds


def _result(found: Mapping[str, Any], run: Run) -> Result:
    measures = {}
    for name, table in found["measures"].items():
        of_arm = table["arms"][run.arm.name]
        values = dict(zip(of_arm["seeds"], of_arm["values"], strict=True))
        # Of how many tokens or samples, no file of results says.
        measures[name] = Measure(values[run.seed], table["better"], table["words"], count=0)
    means = found["arms"][run.arm.name]
    return Result(
        arm=run.arm.name,
        seed=run.seed,
        fingerprint=run.fingerprint,
        settings=run.settings,
        measures=measures,
        kept=means["kept"],
        steps=0,
        train_seconds=means["train_seconds"],
        seconds=means["seconds"],
        versions={name: ", ".join(versions) for name, versions in found["versions"].items()},
    )


if __name__ == "__main__":
    main()
