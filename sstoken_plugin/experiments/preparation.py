"""What the look at everything before the first training leaves in the folder of an experiment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.experiments.results import read_json, write_json

NAME = "prepared.json"


def data_folder(out: Path) -> Path:
    """Return the folder of the data that Axolotl has prepared, which all runs share."""
    return out / "prepared"


def read_preparation(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return what was found, see `prepare`; None if that is not there, of other settings, or without its data.

    Args:
        out: folder of the experiment.
        fingerprint: of all that was looked at.
    """
    found = read_json(out / NAME)
    return found if found and found.get("fingerprint") == fingerprint and _whole(out).exists() else None


def write_preparation(out: Path, fingerprint: str, found: Mapping[str, Any]) -> None:
    """Write what was found."""
    write_json({"fingerprint": fingerprint, **found}, out / NAME)


def begin_data(out: Path, files: Mapping[str, str]) -> None:
    """Remove prepared data that are not whole, or of files that changed: Axolotl tells them apart by name alone.

    Args:
        out: folder of the experiment.
        files: digests of the files that the data are read from, by name.
    """
    folder, whole = data_folder(out), _whole(out)
    if folder.exists() and read_json(whole) != files:
        # What it has of files that are as before is worth less than certainty.
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A kill from here on leaves data that nobody takes for whole.
    whole.unlink(missing_ok=True)


def end_data(out: Path, files: Mapping[str, str]) -> None:
    """Mark the prepared data as whole; see `begin_data`."""
    _whole(out).write_text(json.dumps(files), encoding="utf-8")


def _whole(out: Path) -> Path:
    return data_folder(out) / "complete.json"
