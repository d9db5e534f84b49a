"""Has the runs of an experiment, but for those that it has already."""

from __future__ import annotations

from collections.abc import Sequence

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.base.told import tell
from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.experiments.preparation import notes_of
from sstoken_plugin.experiments.processes import Server, prepared
from sstoken_plugin.experiments.results import make_folder
from sstoken_plugin.experiments.runs import Run, Runs, first_of_arms, part_of
from sstoken_plugin.experiments.schedule import Durations, announcement, conduct


def have(experiment: Experiment, asked: Runs, part: str | None = None) -> list[str]:
    """Have the runs of an experiment that have no result yet.

    Args:
        experiment: the experiment.
        asked: its runs.
        part: "K/N", see `part_of`.

    Returns:
        One sentence for each run that failed.

    Raises:
        ValueError: it cannot be run as it is; one sentence with key and fix.
    """
    runs, untrained = asked.trainings, asked.untrained
    own = part_of(runs, part)
    _refuse_arms(runs)
    make_folder(experiment.out)
    asked.refuse_other_settings()
    durations = Durations()
    for run in asked:
        if (result := run.result()) is not None:
            durations.add(run, result.seconds)
    left = [run for run in own if run.result() is None]
    if len(left) < len(own):
        tell(f"{len(own) - len(left)} of {len(own)} runs have been had before, and are not had again.")
    # Of several machines the one that begins measures it.
    if own[:1] == runs[:1] and untrained.result() is None:
        own, left = [untrained, *own], [untrained, *left]
    if not left:
        return []
    tell("Looking at settings and data, and how long a run takes ...")
    with Server() as server:
        found = prepared(server, experiment, runs, measure=not durations.seen)
        for line in notes_of(found):
            tell(line)
        durations.expect(found)
        tell(announcement(left, durations, found))
        try:
            return conduct(server, experiment, own, durations, tell)
        except KeyboardInterrupt:
            tell("Stopped. The same command goes on where it was.")
            raise


def _refuse_arms(runs: Sequence[Run]) -> None:
    """Refuse an arm that cannot be trained, or is trained as another one is."""
    seen: dict[str, str] = {}
    for run in first_of_arms(runs):
        try:
            axolotl.check(run.settings["train"])
        except ValueError as error:
            raise ValueError(f"arms.{run.arm.name}: {error}") from error
        other = seen.setdefault(run.fingerprint_with_defaults, run.arm.name)
        if other != run.arm.name:
            raise ValueError(
                f"arms: {other} and {run.arm.name} are one and the same training, which no run can tell apart; change "
                "one of them, or remove it."
            )
