"""Goes through the runs of an experiment one by one, and tells how far it is and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from sstoken_plugin.base.numbers import counted
from sstoken_plugin.base.visible_text import one_line
from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.experiments.processes import Server, fault_of, is_busy, run_job
from sstoken_plugin.experiments.results import read_json
from sstoken_plugin.experiments.runs import Run

Tell = Callable[[str], None]

# Seconds between two looks at a process; and between two lines where no terminal can rewrite one.
_LOOK, _LINE = 0.5, 60.0
# And between two looks at what other processes do.
_WAIT = 2.0
# Failures of this process in a row after which the rest would most likely fail too, whatever others have had meanwhile.
_ENOUGH = 3


@dataclass
class Durations:
    """How long runs take: as those of the same arm did, else as all did, else as was estimated.

    Attributes:
        estimate: seconds of a run; None if nothing was measured.
        untrained: seconds of the evaluations of the untrained model, likewise.
        seen: seconds of finished trainings, with their evaluations, by arm and seed.
    """

    estimate: float | None = None
    untrained: float | None = None
    seen: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, run: Run, seconds: float) -> None:
        """Take note of a finished run."""
        if run.is_training:
            self.seen.setdefault(run.arm.name, {})[run.seed] = seconds

    def expect(self, found: Mapping[str, Any]) -> None:
        """Take note of what was estimated before the first run, see `prepare`."""
        estimate = found.get("estimate")
        if isinstance(estimate, Mapping):
            self.untrained = float(estimate["start"] + estimate["evaluation"])
            self.estimate = self.untrained + estimate["step"] * estimate["steps"]

    def of(self, run: Run) -> float | None:
        """Return the seconds that a run will take; None if nothing is known."""
        if not run.is_training and self.untrained is not None:
            return self.untrained
        own = self.seen.get(run.arm.name, {}).values()
        known = own or [each for some in self.seen.values() for each in some.values()]
        return sum(known) / len(known) if known else self.estimate

    def left(self, runs: Sequence[Run]) -> float | None:
        """Return the seconds that runs will take one after the other."""
        each = [self.of(run) for run in runs]
        return None if None in each else sum(filter(None, each))


def in_words(seconds: float) -> str:
    """Return a duration in the unit that fits."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def announcement(runs: Sequence[Run], durations: Durations, found: Mapping[str, Any]) -> str:
    """Say before anything is trained how long it will take, and what that rests on."""
    trainings = [run for run in runs if run.is_training]
    parts = [counted(len(trainings), "run")] if trainings else []
    parts += ["the untrained model"] if len(trainings) < len(runs) else []
    count = f"{' and '.join(parts)} to go"
    left = durations.left(runs)
    if left is None:
        return f"{count}; how long they take is told after the first."
    if durations.seen:
        done = sum(map(len, durations.seen.values()))
        return f"{count}, about {in_words(left)}, as {counted(done, 'finished run')} took."
    estimate = found["estimate"]
    measured = estimate["steps_measured"]
    steps = f"{measured} of its {estimate['steps']} steps" if measured else "a single step"
    without = (
        f" Tasks of lm-evaluation-harness ({', '.join(estimate['left_out'])}) come on top."
        if estimate["left_out"]
        else ""
    )
    assert durations.estimate is not None
    each = in_words(durations.estimate)
    return (
        f"{count}, about {in_words(left)}: {each} each, by {steps} of {estimate['arm']}, measured here, and a few "
        f"held-out samples; the other arms are taken to be as fast, and longer samples take longer.{without}"
    )


def conduct(server: Server, experiment: Experiment, runs: Sequence[Run], durations: Durations, tell: Tell) -> list[str]:
    """Have every run that has no result yet, one after the other.

    Runs that another process has are left to it, and waited for at the end.

    Args:
        server: starts their processes.
        experiment: the experiment.
        runs: those to have.
        durations: how long runs take; finished ones are added.
        tell: shows a line.

    Returns:
        One sentence for each run that failed.
    """
    left = _not_had(runs, durations)
    faults: dict[str, str] = {}
    elsewhere: set[str] = set()
    in_a_row = 0
    while left:
        run = left.pop(0)
        if run.is_taken():
            if run.name not in elsewhere:
                tell(f"{run.name} is under way in another process.")
            left.append(run)
            if elsewhere.issuperset(each.name for each in left):
                # All that is left is. If the process dies, its run is ours.
                time.sleep(_WAIT)
            elsewhere.add(run.name)
            left = _not_had(left, durations)
            continue
        name = f"[{len(runs) - len(left)}/{len(runs)}] {run.name}"
        code, found = _have(server, experiment, run, name, durations, left, tell)
        # Other processes have had some meanwhile.
        left = _not_had(left, durations)
        if (result := run.result()) is not None:
            durations.add(run, result.seconds)
            in_a_row = 0
            rest = durations.left(left)
            tell(
                f"{name}: done in {in_words(result.seconds)}"
                + (f"; about {in_words(rest)} left." if left and rest else ".")
            )
        elif is_busy(code):
            left.append(run)
        else:
            faults[run.name] = fault_of(run, code)
            tell(faults[run.name])
            if code == 1 and not run.is_training and left:
                tell("Every run is measured as this one is: no training is begun.")
                break
            # What keeps an arm from its first step does so with any seed; a signal or a full disk may pass.
            if code == 1 and found is not None and found.get("phase") == "start" and not found.get("seconds"):
                alike = [each for each in left if each.arm == run.arm and not each.is_taken()]
                left = [each for each in left if each not in alike]
                if names := ", ".join(each.name for each in alike):
                    tell(f"It had not begun to train: {names} are not begun, lest they fail alike.")
            in_a_row += 1
            if in_a_row == _ENOUGH and left:
                tell(f"{_ENOUGH} runs in a row failed: the {len(left)} others are not begun.")
                break
    return list(faults.values())


def _not_had(runs: Sequence[Run], durations: Durations) -> list[Run]:
    """Return the runs that have no result yet, and take note of how long the others took."""
    left = []
    for run in runs:
        if (result := run.result()) is None:
            left.append(run)
        else:
            durations.add(run, result.seconds)
    return left


def _have(
    server: Server, experiment: Experiment, run: Run, name: str, durations: Durations, later: Sequence[Run], tell: Tell
) -> tuple[int, Mapping[str, Any] | None]:
    """Have a run in a process of its own; return what that ended with, and how far it said that it was."""
    begin = told = looked = time.monotonic()
    shown = ""
    # An earlier process may have left one that says how far it came.
    progress = run.folder / "progress.json"
    before = _changed_at(progress)
    started = server.start(run_job(run, experiment))
    while (code := started.poll(_LOOK)) is None:
        found = _told_since(before, progress)
        now = time.monotonic()
        if now - looked >= _LINE:
            later, looked = _not_had(later, durations), now
        line = f"{name}: {_phase(found)}{_time_left(found, now - begin, run, durations, later)}"
        if sys.stdout.isatty():
            if line != shown:
                # A line that wraps cannot be rewritten.
                print(f"\r\x1b[K{one_line(line)[: get_terminal_size().columns - 1]}", end="", flush=True)
                shown = line
        elif now - told >= _LINE:
            tell(line)
            told = now
    if shown:
        print("\r\x1b[K", end="", flush=True)
    return code, _told_since(before, progress)


def _changed_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def _told_since(before: int, progress: Path) -> dict[str, Any] | None:
    """Return how far a run is, None where nothing was written since the time of a change, see `_changed_at`."""
    return read_json(progress) if _changed_at(progress) != before else None


def _phase(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "start"
    return f"step {found['done']} of {found['total']}" if found.get("total") else str(found.get("phase"))


def _time_left(
    found: Mapping[str, Any] | None, spent: float, run: Run, durations: Durations, later: Sequence[Run]
) -> str:
    """Return what to say of the time that is left, "" if nothing is known."""
    own = durations.of(run)
    if own is None and found is not None and found.get("total") and found["done"] >= 3:
        own = spent + found["seconds"] * (found["total"] - found["done"]) / found["done"]
    if own is None:
        return ""
    of_others = durations.left(later)
    rest = max(0.0, own - spent) + (of_others if of_others is not None else own * len(later))
    return f"; about {in_words(rest)} left"
