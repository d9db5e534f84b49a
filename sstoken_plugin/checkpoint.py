"""What the plugin keeps in a checkpoint folder, so that a resumed run goes on as if it had not stopped."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = "sstoken"
_FACTS, _TENSORS = "state.json", "history.safetensors"


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
    """

    history: str
    totals: dict[str, float]
    monitor: dict[str, Any]
    warnings: list[str]
    digest: str | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)


def write(checkpoint: Path, state: SelectionState) -> None:
    """Write the state into a checkpoint folder; a kill leaves the old files or the new ones."""
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if state.tensors:
        # safetensors refuses what is not contiguous.
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / f"{_TENSORS}.new")
        os.replace(folder / f"{_TENSORS}.new", folder / _TENSORS)
    facts = {name: value for name, value in vars(state).items() if name != "tensors"}
    facts["has_tensors"] = bool(state.tensors)
    new = folder / f"{_FACTS}.new"
    new.write_text(json.dumps(facts, indent=2), encoding="utf-8")
    os.replace(new, folder / _FACTS)


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
        return SelectionState(**facts, tensors=tensors)
    except (OSError, TypeError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read ({error})") from error
