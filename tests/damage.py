"""What can happen to the files of a folder: each function returns a change to be made to one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], Any]


def cut(name: str, size: int) -> Change:
    """Leave the first bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def written(name: str, content: bytes) -> Change:
    """Put something else in its place."""
    return lambda folder: (folder / name).write_bytes(content)


def gone(name: str) -> Change:
    """Delete it."""
    return lambda folder: (folder / name).unlink()


def in_its_place(name: str) -> Change:
    """Put a folder in its place."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def flipped(name: str, at: int) -> Change:
    """Flip one bit."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 4
        (folder / name).write_bytes(content)

    return change


def edited(name: str, **changes: Any) -> Change:
    """Change entries of a JSON object; ... removes one."""

    def change(folder: Path) -> None:
        found = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

    return change
