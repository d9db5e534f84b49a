"""What the plugin keeps in a checkpoint folder, so that a resumed run goes on as if it had not stopped.

Each file is read on its own, and what cannot be read costs that part alone. Every file has the mark that Trainer's own
state, the last file of a checkpoint, has too: what an earlier run, or a save that was cut, left behind is none of it.
"""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME

from sstoken_plugin.base.files import replacing, write_bytes
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.report.content import Moment, is_record

FOLDER = "sstoken"
# Of the files below; a reader of one format leaves others alone.
FORMAT = 2
_FACTS, _TENSORS, _COUNTS, _MOMENTS = "state.json", "history.safetensors", "kept.safetensors", "moments.json.gz"
# Bytes of the moments when they are unpacked; those of a run are a few million.
_MOST_BYTES = 2**28
_UNREADABLE = (OSError, EOFError, TypeError, KeyError, AttributeError, ValueError, SafetensorError, zlib.error,
               RecursionError)  # fmt: skip
_UNWRITABLE = (OSError, SafetensorError)


@dataclass(frozen=True)
class ReportState:
    """What the report page has to show so far.

    Attributes:
        moments: see `Trajectory`; None where they were not found.
        rule: what ranked the tokens that are counted.
        counts: see `breakdown.KeptCounts`; None where they were not found, or counting had failed.
    """

    moments: list[Moment] | None
    rule: str | None
    counts: Tensor | None


@dataclass(frozen=True)
class SelectionState:
    """The state of a selection between two optimizer steps; None stands for a part that could not be read.

    Attributes:
        history: the value of `sstoken.history`.
        totals: counts since the last log line, see `metrics.Totals`; empty right after one.
        monitor: see `SelectionMonitor.state`.
        warnings: every warning raised so far.
        digest: hash of a history that the checkpoint does not hold; None if there is none.
        tensors: the history's weights, by parameter name.
        report: None if the run writes no report page.
        lost_history: why the weights of the history could not be read; "" if they could.
        faults: what else could not be read, and why.
    """

    history: str | None
    totals: dict[str, float] | None
    monitor: dict[str, Any] | None
    warnings: list[str] | None
    digest: str | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    report: ReportState | None = None
    lost_history: str = ""
    faults: list[str] = field(default_factory=list)


def new_mark() -> dict[str, str]:
    """Return what is to stand in Trainer's own state under `FOLDER`, among the states of callbacks."""
    return {"mark": uuid.uuid4().hex}


def write(checkpoint: Path, state: SelectionState, mark: Mapping[str, str]) -> list[str]:
    """Write the state into a checkpoint folder; a kill leaves the old files or the new ones.

    Args:
        checkpoint: the folder.
        state: what to write.
        mark: see `new_mark`.

    Returns:
        What of the page could not be written, and why. It is left out.

    Raises:
        OSError: the rest could not be written; one sentence with key and mend.
    """
    folder = checkpoint / FOLDER
    head = {"format": FORMAT, **mark}
    facts = {name: vars(state)[name] for name in ("history", "totals", "monitor", "warnings", "digest")}
    facts["has_tensors"] = bool(state.tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if state.tensors:
            _save_tensors(state.tensors, folder / _TENSORS, {**head, "history": state.history})
        found, faults = _write_report(folder, state.report, head)
        write_bytes(json.dumps({**head, **facts, **found}, indent=2).encode(), folder / _FACTS)
    except _UNWRITABLE as error:
        raise OSError(
            f"output_dir: {folder} cannot be written ({in_short(error)}); make room there, or name another output_dir."
        ) from error
    return faults


def _write_report(
    folder: Path, report: ReportState | None, head: Mapping[str, Any]
) -> tuple[dict[str, bool], list[str]]:
    """Write what is only for the page; return which parts are there, and what could not be written."""
    found, faults = {"has_moments": False, "has_counts": False}, list[str]()
    if report is None:
        return found, faults
    try:
        content = json.dumps({**head, "moments": [vars(moment) for moment in report.moments or []]})
        write_bytes(gzip.compress(content.encode()), folder / _MOMENTS)
        found["has_moments"] = True
    except _UNWRITABLE as error:
        faults.append(f"the page's samples ({_MOMENTS}: {in_short(error)})")
    try:
        if report.counts is not None:
            _save_tensors({"counts": report.counts}, folder / _COUNTS, {**head, "rule": report.rule})
            found["has_counts"] = True
    except _UNWRITABLE as error:
        faults.append(f"the page's tables ({_COUNTS}: {in_short(error)})")
    return found, faults


def read(checkpoint: Path) -> SelectionState | None:
    """Read the state from a checkpoint folder; None if it was made without the plugin.

    Raises:
        ValueError: what is there belongs to another checkpoint, or has another format.
    """
    folder = checkpoint / FOLDER
    if not folder.exists():
        return None
    mark = _mark_of(checkpoint)
    if mark is None and not (folder / _FACTS).exists():
        return None
    faults: list[str] = []

    @contextmanager
    def part(name: str, words: str) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            faults.append(f"{words} ({name}: {error})")

    facts: dict[str, Any] = {}
    with part(_FACTS, "metrics and warnings"):
        facts = _checked(json.loads((folder / _FACTS).read_text(encoding="utf-8")), dict[str, Any])
        if not facts:
            raise ValueError("it is empty")
    if facts:
        # The last of our files: the others are its own, or none.
        _refuse_foreign(facts, mark)
    history: str | None = None
    lost_history = ""
    tensors: dict[str, Tensor] = {}
    if facts.get("has_tensors", (folder / _TENSORS).exists()):
        try:
            tensors, head = _load_tensors(folder / _TENSORS, mark)
            history = head.get("history")
        except _UNREADABLE as error:
            lost_history = f"{_TENSORS}: {error}"
    found: dict[str, Any] = {}
    for name, kind, words in (
        ("history", str, "the kind of its history"),
        ("digest", str | None, "the hash of its history"),
        ("totals", dict[str, FiniteFloat], "the metrics since the last log line"),
        ("monitor", dict[str, Any], "what is watched for warnings"),
        ("warnings", list[str], "earlier warnings"),
    ):
        found[name] = None
        if facts:
            with part(_FACTS, words):
                found[name] = _checked(facts[name], kind)
    report = _report(folder, mark, part, facts)
    found["history"] = found["history"] or history
    return SelectionState(**found, tensors=tensors, report=report, lost_history=lost_history, faults=faults)


def _report(folder: Path, mark: str | None, part: Callable[[str, str], Any], facts: Mapping[str, Any]) -> ReportState:
    moments: list[Moment] | None = None
    rule, counts = None, None
    if facts.get("has_moments", (folder / _MOMENTS).exists()):
        with part(_MOMENTS, "the page's samples"):
            moments = _moments(folder / _MOMENTS, mark)
    if facts.get("has_counts", (folder / _COUNTS).exists()):
        with part(_COUNTS, "the page's tables"):
            tensors, head = _load_tensors(folder / _COUNTS, mark)
            rule, counts = head.get("rule"), tensors["counts"]
    return ReportState(moments, rule, counts)


def _moments(file: Path, mark: str | None) -> list[Moment]:
    stream = zlib.decompressobj(wbits=31)
    content = stream.decompress(file.read_bytes(), _MOST_BYTES)
    if not stream.eof:
        raise ValueError("it is cut")
    saved = _checked(json.loads(content), dict[str, Any])
    _refuse_foreign(saved, mark)
    moments = [_moment(entry) for entry in _checked(saved["moments"], list[dict[str, Any]])]
    if len({tuple(len(record["input_ids"]) for record in moment.records) for moment in moments}) > 1:
        raise ValueError("its moments have different samples")
    return moments


def _moment(entry: Mapping[str, Any]) -> Moment:
    # Others are of a release to come.
    moment = Moment(**{own.name: entry[own.name] for own in fields(Moment)})
    _checked([moment.label, moment.rule], list[str])
    _checked([moment.gamma, moment.ratio], list[FiniteFloat])
    if not all(map(is_record, _checked(moment.records, list[dict[str, Any]]))):
        raise ValueError("a record is none")
    return moment


def _mark_of(checkpoint: Path) -> str | None:
    """Return the mark in Trainer's own state; None where a run without the plugin wrote it, or version 0.1."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        mark: str = state["stateful_callbacks"][FOLDER]["mark"]
    except _UNREADABLE:
        return None
    return mark


def _refuse_foreign(head: Mapping[str, Any], mark: str | None) -> None:
    """Refuse a file that does not belong to the checkpoint.

    Raises:
        ValueError: see there.
    """
    if head.get("format") != FORMAT:
        written = "version 0.1" if "format" not in head else "another version"
        raise ValueError(f"its folder {FOLDER} was written by {written} of sstoken-plugin")
    if mark is None or head.get("mark") != mark:
        raise ValueError(f"its folder {FOLDER} was left by another run, or by a save that was cut")


def _checked(value: Any, kind: Any) -> Any:
    """Return a value that has the type it should have.

    Raises:
        ValueError: it has another one.
    """
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}") from error


def _load_tensors(file: Path, mark: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(file, "pt") as opened:
        head = json.loads((opened.metadata() or {}).get("sstoken", "{}"))
        _refuse_foreign(head, mark)
        return {name: opened.get_tensor(name) for name in opened.keys()}, head  # noqa: SIM118


def _save_tensors(tensors: dict[str, Tensor], file: Path, head: Mapping[str, Any]) -> None:
    # safetensors refuses what is not contiguous.
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(file) as new:
        save_file(contiguous, new, metadata={"sstoken": json.dumps(head)})
