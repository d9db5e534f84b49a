"""A look at everything before the first training: settings, data, evaluations, and how long it takes.

Writes what it finds into the folder of the experiment, see `preparation`. Where the experiment cannot be run as it is,
fault.txt has one sentence that says why.
"""

from __future__ import annotations

import gc
import hashlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import print_exc
from typing import Any

from filelock import FileLock

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.base.visible_text import cut, in_short
from sstoken_plugin.experiments.config import AnswersEvaluation, Evaluation, TasksEvaluation
from sstoken_plugin.experiments.evaluate import evaluate
from sstoken_plugin.experiments.inputs import entries_of, refuse_empty
from sstoken_plugin.experiments.preparation import prepared_data, read_preparation, write_preparation
from sstoken_plugin.experiments.results import FAULT
from sstoken_plugin.experiments.tasks import refuse_missing
from sstoken_plugin.experiments.watch import EnoughError, Stopwatch
from sstoken_plugin.experiments.worker import evaluations_of, rows_for

# What is measured of a run before the first one.
_STEPS, _SECONDS = 5, 60.0
_EVALUATED = 8
# Held-out samples of an evaluation by which tokenizers are compared.
_READ = 20


def work(job: Mapping[str, Any]) -> int:
    """Look at everything, and return the exit code of the process.

    Args:
        job: see `processes.prepared`.
    """
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    # Others wait: they would do the same.
    with FileLock(out / "prepare.lock"):
        if read_preparation(out, job["fingerprint"]) is not None:
            return 0
        fault = out / FAULT
        fault.unlink(missing_ok=True)
        try:
            write_preparation(out, job["fingerprint"], _prepare(job, out))
        except Exception as error:
            fault.write_text(in_short(error), encoding="utf-8", errors="replace")
            # Into the log, for the sentence may not be all that there is to know.
            print_exc()
            return 1
    return 0


def _prepare(job: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Check all that can be checked, have the data in their folders, and return what was found."""
    begin = time.monotonic()
    evaluations = evaluations_of(job["evaluations"])
    for name, asked in evaluations.items():
        if isinstance(asked, TasksEvaluation):
            refuse_missing(f"evaluations.{name}", asked.tasks)
    folders = sorted({found["dataset_prepared_path"] for found in (job["held_out"], *job["arms"].values())})
    with prepared_data([Path(each) for each in folders]):
        found = _look_at_data(job, out / "preparation", evaluations)
    found["folders"] = folders
    if job["measured"]:
        found["estimate"] = _measure(job, out, evaluations, time.monotonic() - begin)
    return found


def _look_at_data(job: Mapping[str, Any], folder: Path, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Have the data prepared, and return how many samples there are, and how many of them twice."""
    with _place(f"base (base_model: {job['held_out']['base_model']})"):
        own = {**job["held_out"], "output_dir": str(folder / "unused")}
        tokenizer = axolotl.tokenizer_of(axolotl.load(axolotl.write(own, folder / "held_out.yaml")))
    for place, keys in job["changes"].items():
        axolotl.refuse_unknown(keys, place)
    held_out: dict[str, dict[bytes, int]] = {}
    texts: list[str] = []
    for name, asked in evaluations.items():
        if not isinstance(asked, TasksEvaluation):
            named = getattr(asked, "datasets", None)
            with _place("base" if named is None else f"evaluations.{name}"):
                refuse_empty(entries_of(job["held_out"]) if named is None else named)
                rows = _first(rows_for(asked, job["held_out"], folder), asked)
                held_out[name] = _keys(rows)
                texts += [tokenizer.decode(row["input_ids"]) for row in rows.select(range(min(_READ, len(rows))))]
                if not held_out[name]:
                    raise ValueError(f"the data sets of evaluation {name} have no sample with a response; name others.")
    samples: dict[str, int] = {}
    shared: dict[str, int] = {}
    seen: dict[str, dict[bytes, int]] = {}
    for name, train in job["arms"].items():
        with _place(f"arms.{name}"):
            file = axolotl.write({**train, "output_dir": str(folder / "unused")}, folder / f"{name}.yaml")
            cfg = axolotl.load(file)
            axolotl.refuse_other_vocabulary(cfg)
            if job["changes"].get(f"arms.{name}.changes"):
                _refuse_other_tokens(tokenizer, axolotl.tokenizer_of(cfg), texts)
            data = train["dataset_prepared_path"]
            if data not in seen:
                refuse_empty(entries_of(train))
                seen[data] = _keys(axolotl.data_of(cfg).train_dataset)
        samples[name] = sum(seen[data].values())
        for evaluation, keys in held_out.items():
            both = sum(count for key, count in keys.items() if key in seen[data])
            if both:
                shared[f"{name}/{evaluation}"] = both
    return {
        "samples": samples,
        "held_out": {name: sum(keys.values()) for name, keys in held_out.items()},
        "shared": shared,
    }


def _refuse_other_tokens(tokenizer: Any, own: Any, texts: Sequence[str]) -> None:
    """Refuse an arm to which held-out data, whose tokens are those of the base, would be another text, or odd tokens.

    Args:
        tokenizer: of the base.
        own: of the arm.
        texts: some of the held-out data.
    """
    tokens = own.get_vocab()
    other = next((token for token, number in tokenizer.get_vocab().items() if tokens.get(token) != number), None)
    # Rules may differ where the tokens do not.
    other = other or next((text for text in texts if own(text).input_ids != tokenizer(text).input_ids), None)
    if other:
        raise ValueError(
            f"its changes give it another tokenizer than the base has (of {cut(other, 40)!r}, say), and evaluations "
            "are prepared once, as the base says; leave it out, and give it an experiment of its own"
        )


def _first(rows: Any, asked: Evaluation) -> Any:
    count = getattr(asked, "samples", None)
    return rows if count is None else rows.select(range(min(count, len(rows))))


def _keys(rows: Any) -> dict[bytes, int]:
    """Return a hash of the tokens of each sample that has a response, and how often it is there."""
    found: dict[bytes, int] = {}
    for row in rows.select_columns(["input_ids", "labels"]):
        if any(label >= 0 for label in row["labels"]):
            key = hashlib.blake2b(repr(list(row["input_ids"])).encode(), digest_size=16).digest()
            found[key] = found.get(key, 0) + 1
    return found


@contextmanager
def _place(key: str) -> Iterator[None]:
    """Name the key in whatever a block raises: of what users wrote there, libraries say all kinds of things."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{key}: {in_short(error)}{_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """Return what an error that is for no user came from, in parentheses; "" where it is not known."""
    first: BaseException = error
    while not isinstance(first, ValueError) and first.__cause__ is not None:
        first = first.__cause__
    return f" ({in_short(first)})" if first is not error and isinstance(first, Exception) else ""


def times_as_long(asked: Evaluation, samples: int, measured: int) -> float:
    """Return how much longer an evaluation takes for so many samples than it took for those that were measured."""
    # Answers come in batches, of which one takes as long with few as with many.
    batch = asked.batch_size if isinstance(asked, AnswersEvaluation) else 1
    return math.ceil(samples / batch) / math.ceil(measured / batch)


def _measure(job: Mapping[str, Any], out: Path, evaluations: Mapping[str, Evaluation], start: float) -> dict[str, Any]:
    """Measure some steps of one arm, and evaluations on some samples with its untrained model.

    Returns:
        Seconds of a start, of a step and of an evaluation, and steps of a run.
    """
    folder = out / "preparation"
    name = job["measured"]
    watch = Stopwatch(_STEPS, _SECONDS)
    train = {**job["arms"][name], "output_dir": str(folder / "measured")}
    shutil.rmtree(folder / "measured", ignore_errors=True)
    began = time.monotonic()
    with suppress(EnoughError):
        axolotl.train(axolotl.write(train, folder / "measured.yaml"), 0, [watch])
    whole = time.monotonic() - began
    # Of a training that was cut: a GPU may have no room for a second model.
    gc.collect()
    step = sum(watch.step_seconds) / len(watch.step_seconds) if watch.step_seconds else whole
    begin = max(0.0, whole - sum(watch.step_seconds)) + start / max(1, len(job["arms"]))
    file = axolotl.write(axolotl.yaml_of_arm(job["held_out"], None, {}) | {"output_dir": str(folder / "measured")},
                         folder / "untrained.yaml")  # fmt: skip
    trained = axolotl.trained_model(file)
    seconds = 0.0
    for key, asked in evaluations.items():
        if isinstance(asked, TasksEvaluation):
            continue
        rows = _first(rows_for(asked, job["held_out"], folder), asked)
        few = rows.select(range(min(_EVALUATED, len(rows))))
        began = time.monotonic()
        evaluate(trained, key, asked, lambda few=few: few)  # type: ignore[misc]
        seconds += (time.monotonic() - began) * times_as_long(asked, len(rows), len(few))
    shutil.rmtree(folder / "measured", ignore_errors=True)
    return {
        "arm": name,
        "steps_measured": len(watch.step_seconds),
        "start": begin,
        "step": step,
        "steps": watch.max_steps,
        "evaluation": seconds,
        "left_out": [key for key, asked in evaluations.items() if isinstance(asked, TasksEvaluation)],
    }
