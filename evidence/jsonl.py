"""Data of the experiments: JSONL files, and how a YAML of Axolotl names one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write(file: Path, samples: Iterable[Mapping[str, Any]]) -> None:
    """Write a sample a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")


def named(file: Path, kind: str, **keys: str) -> list[dict[str, str]]:
    """Return the `datasets:` of a YAML that has this file alone.

    Args:
        file: the file.
        kind: Axolotl's `type` of a data set.
        keys: others of the entry.
    """
    # Axolotl takes a path without a slash for the name of a hub's data set; `ds_type` says what the file is.
    return [{"path": str(file), "ds_type": "json", "type": kind, **keys}]
