"""What the parts of a selection keep in a checkpoint folder, so that a resumed run goes on as if it had not stopped.

Each file is read on its own, and what cannot be read costs that part alone. Every file has the mark that Trainer's own
state, the last file of a checkpoint, has too: what an earlier run, or a save that was cut, left behind is none of it.
"""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME

from sstoken_plugin.base.checked import checked
from sstoken_plugin.base.files import replacing, unpacked, write_bytes
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.training.parts import Part, Saved

FOLDER = "sstoken"
# Of the files below; a reader of one format leaves others alone.
FORMAT = 3
_FACTS, _TENSORS, _DOCUMENT = "state.json", ".safetensors", ".json.gz"
# Of the facts; all others are the names of parts.
_HEAD = ("format", "mark", "files")
# Bytes of a document when it is unpacked; those of a run are a few million.
_MOST_BYTES = 2**28
_UNREADABLE = (OSError, EOFError, TypeError, KeyError, AttributeError, ValueError, SafetensorError, zlib.error,
               RecursionError)  # fmt: skip
_UNWRITABLE = (OSError, SafetensorError)


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds of a selection.

    Attributes:
        parts: the states that could be read, by name of the part.
        lost: why others could not be read, by name of the part.
        fault: why the facts of the parts could not be read; "" if they could.
    """

    parts: dict[str, Saved] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    fault: str = ""


def new_mark() -> dict[str, str]:
    """Return what is to stand in Trainer's own state under `FOLDER`, among the states of callbacks."""
    return {"mark": uuid.uuid4().hex}


def write(checkpoint: Path, states: Iterable[tuple[Part, Saved]], mark: Mapping[str, str]) -> list[str]:
    """Write the states of parts into a checkpoint folder; a kill leaves the old files or the new ones.

    Args:
        checkpoint: the folder.
        states: each part that has a state, with it.
        mark: see `new_mark`.

    Returns:
        What of the spare parts could not be written, and why. It is left out.

    Raises:
        OSError: the rest could not be written; one sentence with key and fix.
    """
    folder = checkpoint / FOLDER
    head = {"format": FORMAT, **mark}
    facts: dict[str, Any] = {}
    files, faults = list[str](), list[str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, saved in states:
            before = len(files)
            try:
                _write_part(folder, part.name, saved, head, files)
            except _UNWRITABLE as error:
                if not part.is_spare:
                    raise
                faults.append(f"{part.words} ({files[-1]}: {in_short(error)})")
                del files[before:]
            else:
                facts[part.name] = saved.facts
        write_bytes(json.dumps({**head, "files": files, **facts}, indent=2).encode(), folder / _FACTS)
    except _UNWRITABLE as error:
        raise OSError(
            f"output_dir: {folder} cannot be written ({in_short(error)}); make room there, or name another output_dir."
        ) from error
    return faults


def _write_part(folder: Path, name: str, saved: Saved, head: Mapping[str, Any], files: list[str]) -> None:
    """Write the files of a part; the name of each is added to `files` before it is written."""
    # With the facts, which may be lost elsewhere.
    head = {**head, "facts": saved.facts}
    if saved.tensors:
        # safetensors refuses what is not contiguous.
        contiguous = {key: tensor.contiguous() for key, tensor in saved.tensors.items()}
        files.append(name + _TENSORS)
        with replacing(folder / files[-1]) as new:
            save_file(contiguous, new, metadata={"sstoken": json.dumps(head)})
    if saved.document is not None:
        files.append(name + _DOCUMENT)
        content = json.dumps({**head, name: saved.document})
        write_bytes(gzip.compress(content.encode()), folder / files[-1])


def holds_state(folder: Path) -> bool:
    """Tell whether a folder holds what `write` puts into a checkpoint, be it damaged."""
    return (folder / FOLDER / _FACTS).exists()


def read(checkpoint: Path, only: Collection[str] | None = None) -> Found | None:
    """Read what a checkpoint folder holds; None if it was made without the plugin.

    Args:
        checkpoint: the folder.
        only: names of the parts whose files are read; None for all.

    Raises:
        ValueError: what is there belongs to another checkpoint, or has another format.
    """
    folder = checkpoint / FOLDER
    if not folder.exists():
        return None
    mark = _mark_of(checkpoint)
    if mark is None and not holds_state(checkpoint):
        return None
    facts: dict[str, Any] = {}
    found = Found()
    try:
        facts = checked(json.loads((folder / _FACTS).read_text(encoding="utf-8")), dict[str, Any])
        if not facts:
            raise ValueError("it is empty")
    except _UNREADABLE as error:
        found = Found(fault=f"{_FACTS}: {error}")
    else:
        # The last of our files: the others are its own, or none.
        _refuse_foreign(facts, mark)
    found.parts.update({name: Saved(value) for name, value in facts.items() if name not in _HEAD})
    there = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    listed = facts.get("files")
    for name in map(str, listed if isinstance(listed, list) else there):
        part = name.partition(".")[0]
        # Not what a save that was cut has left.
        if part in found.lost or "/" in name or not name.endswith((_TENSORS, _DOCUMENT)):
            continue
        if only is not None and part not in only:
            continue
        try:
            found.parts[part] = _read_part(folder / name, part, mark, found.parts.get(part))
        except _UNREADABLE as error:
            found.lost[part] = f"{name}: {error}"
            found.parts.pop(part, None)
    return found


def _read_part(file: Path, part: str, mark: str | None, known: Saved | None) -> Saved:
    """Add what a file holds to what is known of a part."""
    tensors: dict[str, Tensor] = {}
    document: Any = None
    if file.name.endswith(_TENSORS):
        with safe_open(file, "pt") as opened:
            head = json.loads((opened.metadata() or {}).get("sstoken", "{}"))
            _refuse_foreign(head, mark)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    else:
        head = checked(json.loads(unpacked(file, _MOST_BYTES)), dict[str, Any])
        _refuse_foreign(head, mark)
        document = head[part]
    if known is None:
        return Saved(head.get("facts"), tensors, document)
    return Saved(known.facts, {**known.tensors, **tensors}, known.document if document is None else document)


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
        written = "version 0.1" if head.get("format") in (None, 2) else "another version"
        raise ValueError(f"its folder {FOLDER} was written by {written} of sstoken-plugin")
    if mark is None or head.get("mark") != mark:
        raise ValueError(f"its folder {FOLDER} was left by another run, or by a save that was cut")
