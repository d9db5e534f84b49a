"""One run in a process of its own: trains, evaluates, writes result.json.

The process ends with 0 when the result is there, with `BUSY` where another process has the run, with 1 after an error,
which is in fault.txt in one sentence and in log.txt in full.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.experiments.config import KINDS, Evaluation, checked
from sstoken_plugin.experiments.evaluate import evaluate
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.experiments.results import (
    BUSY,
    FAULT,
    MEASURED,
    TRAINED,
    Result,
    read_json,
    read_result,
    versions_here,
    write_json,
    write_result,
)
from sstoken_plugin.experiments.runs import refuse_work_of_others, settings_begun
from sstoken_plugin.experiments.watch import Watch
from sstoken_plugin.report.fit import mean_over_steps

_METRICS = "sstoken/"
_WEIGHTS = (".safetensors", ".bin", ".pt")
# What there is to remember of no training.
_UNTRAINED: dict[str, Any] = {"steps": 0, "seconds": 0.0, "kept": {}}


def work(job: Mapping[str, Any]) -> int:
    """Have a run, and return the exit code of its process.

    Args:
        job: see `processes.run_job`.
    """
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=1):
            return _locked(job, folder)
    except Timeout:
        return BUSY


def evaluations_of(blocks: Mapping[str, Any]) -> dict[str, Evaluation]:
    """Return evaluations from their settings."""
    return {name: checked(KINDS[block["kind"]], block, f"evaluations.{name}") for name, block in blocks.items()}


def rows_for(asked: Evaluation, held_out: Mapping[str, Any], folder: Path) -> Any:
    """Return the prepared samples of an evaluation.

    Args:
        asked: the evaluation.
        held_out: the YAML that says how data are prepared, and has the evaluation set of its own.
        folder: for a YAML.

    Raises:
        ValueError: there are none; one sentence with key and fix.
    """
    named = getattr(asked, "datasets", None)
    if named is not None:
        return axolotl.rows_of(held_out, named, folder)
    file = axolotl.write({**held_out, "output_dir": str(folder / "unused")}, folder / "held_out.yaml")
    rows = axolotl.data_of(axolotl.load(file)).eval_dataset
    if rows is None or not len(rows):
        raise ValueError(
            "the base has no evaluation data of its own; set `val_set_size: 0.1` or `test_datasets:` in it, or "
            "`datasets:` in the evaluation."
        )
    return rows


def _locked(job: Mapping[str, Any], folder: Path) -> int:
    found = read_result(folder)
    if found is not None and found.fingerprint == job["fingerprint"]:
        return 0
    fault = folder / FAULT
    fault.unlink(missing_ok=True)
    try:
        # A command of other settings may have begun since the one that asks was told that there is none.
        refuse_work_of_others(folder, job["fingerprint"], job["settings"])
        if settings_begun(folder).get("fingerprint") != job["fingerprint"]:
            # What others have left there would be taken for what this run has saved.
            _remove_all(folder / "out")
        write_json({key: job[key] for key in ("arm", "seed", "fingerprint", "settings")}, folder / "run.json")
        _do(job, folder)
    except BaseException as error:
        told = in_short(error) if isinstance(error, Exception) else f"it was ended by {type(error).__name__}"
        fault.write_text(told, encoding="utf-8", errors="replace")
        raise
    return 0


def _do(job: Mapping[str, Any], folder: Path) -> None:
    progress = _Progress(folder / "progress.json")
    out = folder / "out"
    held_out = {**job["held_out"], "output_dir": str(out)}
    if job["train"] is None:
        trained, earlier, measured = _UNTRAINED, 0.0, held_out
    else:
        found = read_json(folder / TRAINED) if _has_weights(out) else None
        if found is None:
            (folder / MEASURED).unlink(missing_ok=True)
        trained = _train(job, folder, out, progress) if found is None else found
        earlier = trained["earlier_seconds" if found is None else "seconds"]
        measured = axolotl.yaml_of_trained(job["train"], out)
    progress.tell("evaluation", 0, 0)
    measures, evaluated = _measures(job, folder, axolotl.write(measured, folder / "trained.yaml"), held_out, progress)
    write_result(
        Result(
            arm=job["arm"],
            seed=job["seed"],
            fingerprint=job["fingerprint"],
            settings=job["settings"],
            measures=measures,
            kept=trained["kept"],
            steps=trained["steps"],
            train_seconds=trained["seconds"],
            seconds=earlier + evaluated + time.time() - job["started"],
            versions=versions_here(),
        ),
        folder,
    )
    (folder / MEASURED).unlink(missing_ok=True)
    if not job["keep_model"]:
        # Before the weights: what says that they are there must not outlive them, should the result ever be lost.
        (folder / TRAINED).unlink(missing_ok=True)
        _remove_weights(out)


def _measures(
    job: Mapping[str, Any], folder: Path, model: Path, held_out: Mapping[str, Any], progress: _Progress
) -> tuple[dict[str, Measure], float]:
    """Return the measures of all evaluations, and the seconds that earlier processes took for some of them.

    Leaves those of each evaluation where a later process finds them.

    Args:
        job: see `processes.run_job`.
        folder: of the run.
        model: YAML of the trained model.
        held_out: see `rows_for`.
        progress: is told of each.
    """
    file = folder / MEASURED
    measures, earlier = _measured(file, job["fingerprint"])
    had = {name.partition("/")[0] for name in measures}
    left = {name: asked for name, asked in evaluations_of(job["settings"]["evaluations"]).items() if name not in had}
    if not left:
        return measures, earlier
    begin = time.monotonic()
    trained = axolotl.trained_model(model)
    for name, asked in left.items():
        progress.tell(f"evaluation {name}", 0, 0)
        measures |= evaluate(trained, name, asked, partial(rows_for, asked, held_out, folder))
        kept = {each: measure.as_json() for each, measure in measures.items()}
        seconds = earlier + time.monotonic() - begin
        write_json({"fingerprint": job["fingerprint"], "measures": kept, "seconds": seconds}, file)
    return measures, earlier


def _measured(file: Path, fingerprint: str) -> tuple[dict[str, Measure], float]:
    """Return the measures that earlier processes have left of these settings, and the seconds that they took."""
    found = read_json(file) or {}
    if found.get("fingerprint") != fingerprint:
        return {}, 0.0
    try:
        return {name: Measure.from_json(value) for name, value in found["measures"].items()}, float(found["seconds"])
    except (ValueError, KeyError, AttributeError, TypeError):
        # Damaged: they are had again.
        return {}, 0.0


def _train(job: Mapping[str, Any], folder: Path, out: Path, progress: _Progress) -> dict[str, Any]:
    """Train to the end, from the last checkpoint if there is one; return what to remember of it."""
    remove_cut_checkpoints(out)
    before = progress.seconds if any(out.glob("checkpoint-*")) else 0.0
    start = time.monotonic()

    def tell(done: int, total: int) -> None:
        progress.tell("training", done, total, before + time.monotonic() - start)

    progress.tell("start", 0, 0, before)
    file = axolotl.write(job["train"], folder / "axolotl.yaml")
    log, steps = axolotl.train(file, job["seed"], [Watch(tell, job["checkpoint_minutes"])])
    seconds = before + time.monotonic() - start
    trained = {"steps": steps, "seconds": seconds, "earlier_seconds": before, "kept": _kept(log)}
    write_json(trained, folder / TRAINED)
    return trained


def remove_cut_checkpoints(out: Path) -> None:
    """Remove checkpoints whose writing was cut: Trainer's own state is the last file of one."""
    for checkpoint in out.glob("checkpoint-*"):
        if read_json(checkpoint / "trainer_state.json") is None:
            shutil.rmtree(checkpoint)


def _kept(log: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean over the steps of a training of each metric of the selection."""
    names = sorted({name for line in log for name in line if name.startswith(_METRICS)})
    means = {name.removeprefix(_METRICS): mean_over_steps(log, name) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}


def _remove_all(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _has_weights(out: Path) -> bool:
    return any(entry.suffix in _WEIGHTS for entry in out.glob("*"))


def _remove_weights(out: Path) -> None:
    """Remove what takes room: weights and checkpoints; the page of the selection stays."""
    for entry in out.iterdir() if out.is_dir() else ():
        if entry.name == "sstoken":
            shutil.rmtree(entry / "history", ignore_errors=True)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.suffix in _WEIGHTS:
            entry.unlink(missing_ok=True)


class _Progress:
    """A file that says how far a run is, written at most once a second.

    Args:
        file: the file; what an earlier process wrote there is read.

    Attributes:
        seconds: of training, by the file.
    """

    def __init__(self, file: Path):
        self._file = file
        self._told = -1.0
        self._phase = ""
        seconds = (read_json(file) or {}).get("seconds", 0.0)
        self.seconds = float(seconds) if isinstance(seconds, float | int) else 0.0

    def tell(self, phase: str, done: int, total: int, seconds: float | None = None) -> None:
        """Take note of a phase, of steps done and in all, and of seconds of training."""
        if seconds is not None:
            self.seconds = seconds
        now = time.monotonic()
        if phase == self._phase and now - self._told < 1 and done < total:
            return
        self._phase, self._told = phase, now
        write_json({"phase": phase, "done": done, "total": total, "seconds": self.seconds}, self._file)
