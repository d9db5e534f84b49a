"""Finds runs on disk, and reads what they left there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sstoken_plugin.base.checked import checked
from sstoken_plugin.base.files import expand
from sstoken_plugin.base.numbers import is_number
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.report.content import Report
from sstoken_plugin.report.fit import last_step, points
from sstoken_plugin.report.page_data import FILE, PageData, read_page_data

# Of the run, and of a checkpoint; `transformers.trainer`, which has the second too, takes seconds to import.
FOLDER, _STATE = "sstoken", "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_ADAPTER = "adapter_config.json"
_MODEL = "base_model_name_or_path"
# Of an adapter's file, what users set.
_ADAPTER_KEYS = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_dora",
                 "use_rslora")  # fmt: skip
# Of Trainer's state.
_STATE_KEYS = ("train_batch_size", "num_train_epochs", "max_steps")
_UNREADABLE = (OSError, ValueError, RecursionError)


@dataclass(frozen=True)
class FinishedRun:
    """What a run left on disk.

    Attributes:
        folder: its output_dir, or its checkpoint.
        source: the file or the checkpoint folder that it was read from.
        log: lines of the training's log.
        report: what its page shows; None of plain training, and of a run without a page.
        settings: of trainer and adapter by name, as far as they are known; values of JSON's types.
        note: a sentence on what is not the whole run; "" otherwise.
        name: tells it from the others, for people.
    """

    folder: Path
    source: Path
    log: Sequence[Mapping[str, Any]]
    report: Report | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    name: str = ""

    @property
    def is_checkpoint(self) -> bool:
        """Whether it was read from a checkpoint."""
        return self.source.is_dir()

    @property
    def selects(self) -> bool:
        """Whether it trained on selected tokens."""
        return self.report is not None or any("sstoken/selected_ratio" in line for line in self.log)


def find_runs(given: Sequence[str]) -> tuple[list[FinishedRun], list[str]]:
    """Return the runs that are meant, and a sentence for each that could not be read in a folder of runs.

    Args:
        given: each an output_dir, its folder `sstoken`, one of its checkpoints, or a folder that has runs in it.

    Raises:
        ValueError: one of them is none, cannot be read, or is given twice; one sentence with the fix.
    """
    found: list[FinishedRun] = []
    faults: list[str] = []
    origins: dict[Path, str] = {}
    for words in given:
        for run in _runs_of(words, faults):
            source = run.source.resolve()
            if source in origins:
                raise ValueError(f"RUN: {words} and {origins[source]} are the same run, in {source}; name it once.")
            origins[source] = words
            found.append(run)
    return [replace(run, name=name) for run, name in zip(found, _names(found), strict=True)], faults


def _runs_of(words: str, faults: list[str]) -> list[FinishedRun]:
    folder = expand(words)
    try:
        if not words.strip() or not folder.exists():
            raise ValueError(f"RUN: there is no folder {words!r}; name the output_dir of a run.")
        if not folder.is_dir():
            raise ValueError(f"RUN: {words} is a file; name the output_dir of a run.")
        return _runs_in(folder.resolve().parent if folder.resolve().name == FOLDER else folder, words, faults)
    except OSError as error:
        raise ValueError(f"RUN: {words} cannot be read ({in_short(error)}); name a folder that can.") from error


def _runs_in(folder: Path, words: str, faults: list[str]) -> list[FinishedRun]:
    try:
        run = _run_in(folder)
        if run is not None:
            return [run]
        found = []
        for each in sorted(folder.iterdir()):
            try:
                if each.is_dir() and each.name != FOLDER and (inner := _run_in(each)) is not None:
                    found.append(inner)
            except (OSError, ValueError) as error:
                faults.append(f"{each} is left out: {error}.")
    except ValueError as error:
        raise ValueError(f"RUN: {words}: {error}; leave it out, or have the run again.") from error
    if not found and faults:
        raise ValueError(f"RUN: {words} has no run that can be read: {faults[0]}")
    if not found:
        raise ValueError(
            f"RUN: {words} holds no run: neither {FOLDER}/{FILE}, which a run writes when it ends, nor a checkpoint "
            f"with {_STATE}; name the output_dir of a run, or a folder of runs."
        )
    return found


def _run_in(folder: Path) -> FinishedRun | None:
    """Return the run of a folder, the newer one if two wrote there; None where it holds none.

    Raises:
        ValueError: nothing that it holds can be read; the reason.
    """
    faults: dict[Path, str] = {}
    while traces := _traces(folder, faults):
        newest = max(traces, key=lambda trace: trace.written)
        own = [trace for trace in traces if trace.is_of_the_run_of(newest)]
        # Of the same step the page, which comes first.
        last = max(own, key=lambda trace: trace.step)
        try:
            run = last.run if last.run.report else _with_page(last.run)
        except ValueError as error:
            faults[last.run.source] = str(error)
            continue
        notes = [] if len(own) == len(traces) else [f"{folder} has what two runs wrote there; the newer one is shown."]
        is_whole = run.report is None and run.settings.get("max_steps") == last.step
        if run.source.parent == folder and run.is_checkpoint and (faults or not is_whole):
            why = next(iter(faults.values()), "it has not come to its end")
            notes.append(f"{folder} is shown as of {run.source.name}, because {why}.")
        return replace(run, folder=folder, note=" ".join(notes))
    if faults:
        raise ValueError(next(iter(faults.values())))
    return None


@dataclass(frozen=True)
class _Trace:
    """A run as the data of its page, or one folder with Trainer's state, shows it.

    Attributes:
        run: the run; of a checkpoint without what its page shows, which takes seconds to read.
        losses: of its log, by step.
        step: the last one.
        written: when, in seconds.
    """

    run: FinishedRun
    losses: Mapping[float, float]
    step: float
    written: float

    @classmethod
    def of(cls, run: FinishedRun, file: Path) -> _Trace:
        """Return that of a run whose log is in a file."""
        return cls(run, dict(points(run.log, "loss")), last_step(run.log) or 0, file.stat().st_mtime)

    def is_of_the_run_of(self, other: _Trace) -> bool:
        """Tell whether both are of one run, whose log grows and does not change; what cannot be told is."""
        common = self.losses.keys() & other.losses.keys()
        if not common:
            return not (self.losses and other.losses)
        return all(self.losses[step] == other.losses[step] for step in common)


def _traces(folder: Path, faults: dict[Path, str]) -> list[_Trace]:
    """Return what runs left in a folder; what cannot be read is left out, and told in `faults`."""
    steps = {each: int(match[1]) for each in folder.iterdir() if (match := _CHECKPOINT.fullmatch(each.name))}
    states = [each for each in steps if (each / _STATE).is_file()]
    page = folder / FOLDER / FILE
    found: dict[Path, _Trace] = {}
    for places in (
        [page] if page.is_file() else [],
        [folder] if (folder / _STATE).is_file() else [],
        sorted(states, key=steps.__getitem__, reverse=True),
        # Checkpoints of an earlier, longer run have higher numbers than those of the newer one.
        sorted(states, key=lambda each: (each / _STATE).stat().st_mtime, reverse=True),
    ):
        for place in places:
            if place not in faults and place not in found:
                try:
                    found[place] = _of_page(place, folder) if place == page else _of_state(place)
                except ValueError as error:
                    faults[place] = str(error)
            if place in found:
                break
    return list(found.values())


def _of_page(file: Path, folder: Path) -> _Trace:
    data = read_page_data(file)
    settings = {**data.training, **_adapter(folder)}
    return _Trace.of(FinishedRun(folder, file, data.report.log, data.report, settings), file)


def _of_state(folder: Path) -> _Trace:
    """Return what a folder that has Trainer's state shows, such as a checkpoint."""
    state = _json(folder / _STATE)
    try:
        log = checked(state.get("log_history"), list[dict[str, Any]])
    except ValueError as error:
        raise ValueError(f"{folder / _STATE} has no log ({in_short(error)})") from error
    settings = {**{key: state[key] for key in _STATE_KEYS if key in state}, **_adapter(folder)}
    found = _Trace.of(FinishedRun(folder, folder, log, settings=settings), folder / _STATE)
    return replace(found, step=state["global_step"]) if is_number(state.get("global_step")) else found


def _with_page(run: FinishedRun) -> FinishedRun:
    """Return the run of a checkpoint with what its page shows, if it has that."""
    try:
        data = _page_data(run.source, [dict(line) for line in run.log])
    except ValueError as error:
        raise ValueError(f"{run.source / FOLDER} cannot be read ({in_short(error)})") from error
    if data is None:
        return run
    return replace(run, report=data.report, settings={**run.settings, **data.training, **_adapter(run.source)})


def _page_data(checkpoint: Path, log: list[dict[str, Any]]) -> PageData | None:
    if not (checkpoint / FOLDER).exists():
        return None
    # Here, since it imports all that trains.
    from sstoken_plugin.report.parts import read_checkpoint
    from sstoken_plugin.training.checkpoint import holds_state

    # A run's own folder may have Trainer's state too, and in its folder of ours other things than a checkpoint has.
    if not (_CHECKPOINT.fullmatch(checkpoint.name) or holds_state(checkpoint)):
        return None
    return read_checkpoint(checkpoint, log)


def _adapter(folder: Path) -> dict[str, Any]:
    """Return the settings of the adapter in a folder; none where there is none."""
    if not (folder / _ADAPTER).is_file():
        return {}
    found = _json(folder / _ADAPTER)
    own = {key: found[key] for key in _ADAPTER_KEYS if key in found}
    if isinstance(own.get("target_modules"), list):
        # It is a set, in no order.
        own["target_modules"] = sorted(map(str, own["target_modules"]))
    return {**own, **({"base_model": found[_MODEL]} if found.get(_MODEL) else {})}


def _json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = checked(json.loads(file.read_text(encoding="utf-8")), dict[str, Any])
    except _UNREADABLE as error:
        raise ValueError(f"{file} cannot be read ({in_short(error)})") from error
    return found


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Return names as short as tell the runs apart: the ends of their paths."""
    parts = [run.folder.resolve().parts for run in runs]
    shortest = [_CHECKPOINT.fullmatch(each[-1]) is not None for each in parts]
    names = [[*each[-1 - is_checkpoint :]] for each, is_checkpoint in zip(parts, shortest, strict=True)]
    for length in range(1, max(map(len, parts), default=1) + 1):
        taken = ["/".join(name) for name in names]
        if len(set(taken)) == len(taken):
            break
        names = [
            [*each[-max(length + 1, len(name)) :]] if taken.count("/".join(name)) > 1 else name
            for each, name in zip(parts, names, strict=True)
        ]
    return ["/".join(name) for name in names]
