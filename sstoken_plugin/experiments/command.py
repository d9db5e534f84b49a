"""The command of experiments that have a YAML of their own."""

from __future__ import annotations

from pathlib import Path

import click

from sstoken_plugin.base.told import told_in_a_sentence
from sstoken_plugin.experiments.config import read


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option("--part", metavar="K/N", help="Have the K-th of N parts of the runs: for N machines, or N GPUs.")
@click.option(
    "--collect", "only_collect", is_flag=True, help="Train nothing: write the page of the runs that are there."
)
def command(config: str, part: str | None, only_collect: bool) -> None:
    """Train the arms of CONFIG with each of its seeds, evaluate them, and write OUT/page.html and OUT/results.json.

    Can be stopped at any time: the same command goes on where it was. See docs/experiments.md.
    """
    # Here, so that `--help` stays quick.
    from sstoken_plugin.experiments.conclude import Files, conclude, refuse_files_of_others
    from sstoken_plugin.experiments.have import have
    from sstoken_plugin.experiments.numbers import as_json
    from sstoken_plugin.experiments.runs import Runs

    with told_in_a_sentence():
        if only_collect and part is not None:
            raise ValueError("--part says which runs to have, and --collect has none; leave one of them out.")
        experiment = read(Path(config))
        page, numbers = experiment.out / "page.html", experiment.out / "results.json"
        refuse_files_of_others(page, numbers)
        runs = Runs.of(experiment)
        if only_collect and not any(run.result() for run in runs):
            # Of other settings there may be some, and a page of them.
            runs.refuse_other_settings()
        faults = [] if only_collect else have(experiment, runs, part)
        conclude(experiment, runs, Files(page, "Does token selection help?", numbers, as_json), faults)
