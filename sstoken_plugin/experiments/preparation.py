"""What the look at everything before the first training leaves in the folder of an experiment."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.experiments.results import read_json, write_json

NAME = "prepared.json"
# Of a folder with prepared data, where they are whole.
_WHOLE = "complete"


def read_preparation(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return what was found, see `prepare`; None if that is not there, of other settings, or without its data.

    Args:
        out: folder of the experiment.
        fingerprint: of all that was looked at.
    """
    found = read_json(out / NAME)
    if found is None or found.get("fingerprint") != fingerprint:
        return None
    return found if all((Path(folder) / _WHOLE).exists() for folder in found["folders"]) else None


def write_preparation(out: Path, fingerprint: str, found: Mapping[str, Any]) -> None:
    """Write what was found; `folders` are those of the data that Axolotl has prepared."""
    write_json({"fingerprint": fingerprint, **found}, out / NAME)


def begin_data(folder: Path) -> None:
    """Begin to prepare data in a folder whose name stands for their settings and files; what is not whole is removed.

    Args:
        folder: see `runs.data_folder`.
    """
    if folder.exists() and not (folder / _WHOLE).exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A kill from here on leaves data that nobody takes for whole.
    (folder / _WHOLE).unlink(missing_ok=True)


def end_data(folder: Path) -> None:
    """Mark prepared data as whole; see `begin_data`."""
    (folder / _WHOLE).touch()
