"""What the plugin keeps in a checkpoint folder, so that a resumed run goes on as if it had not stopped."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = "sstoken"
_FACTS, _TENSORS, _COUNTS, _MOMENTS = "state.json", "history.safetensors", "kept.safetensors", "moments.json.gz"


@dataclass(frozen=True)
class ReportState:
    """What the report page has to show so far.

    Attributes:
        moments: fields of `report.Moment`.
        rule: what ranked the tokens that are counted.
        counts: see `breakdown.KeptCounts`.
    """

    moments: list[dict[str, Any]]
    rule: str | None
    counts: Tensor


@dataclass(frozen=True)
class SelectionState:
    """The state of a selection between two optimizer steps.

    Attributes:
        history: the value of `sstoken.history`.
        totals: counts since the last log line, see `metrics.Totals`; empty right after one.
        monitor: see `SelectionMonitor.state`.
        warnings: every warning raised so far.
        digest: hash of a history that the checkpoint does not hold; None if there is none.
        tensors: the history's weights, by parameter name.
        report: None if the run writes no report page.
    """

    history: str
    totals: dict[str, float]
    monitor: dict[str, Any]
    warnings: list[str]
    digest: str | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    report: ReportState | None = None


def write(checkpoint: Path, state: SelectionState) -> None:
    """Write the state into a checkpoint folder; a kill leaves the old files or the new ones."""
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if state.tensors:
        _save_tensors(state.tensors, folder / _TENSORS)
    if state.report is not None:
        _save_tensors({"counts": state.report.counts}, folder / _COUNTS)
        moments = {"moments": state.report.moments, "rule": state.report.rule}
        _save_bytes(gzip.compress(json.dumps(moments).encode()), folder / _MOMENTS)
    facts = {name: value for name, value in vars(state).items() if name not in ("tensors", "report")}
    facts |= {"has_tensors": bool(state.tensors), "has_report": state.report is not None}
    _save_bytes(json.dumps(facts, indent=2).encode(), folder / _FACTS)


def read(checkpoint: Path) -> SelectionState | None:
    """Read the state from a checkpoint folder; None if it was made without the plugin.

    Raises:
        ValueError: what is there cannot be read.
    """
    folder = checkpoint / FOLDER
    if not (folder / _FACTS).exists():
        return None
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS) if facts.pop("has_tensors") else {}
        # A state of the first release has none.
        report = _report(folder) if facts.pop("has_report", False) else None
        return SelectionState(**facts, tensors=tensors, report=report)
    except (OSError, EOFError, TypeError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read ({error})") from error


def _report(folder: Path) -> ReportState:
    moments = json.loads(gzip.decompress((folder / _MOMENTS).read_bytes()))
    return ReportState(**moments, counts=load_file(folder / _COUNTS)["counts"])


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    new = file.with_name(f"{file.name}.new")
    # safetensors refuses what is not contiguous.
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new)
    os.replace(new, file)


def _save_bytes(content: bytes, file: Path) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_bytes(content)
    os.replace(new, file)
