"""What the look at everything before the first training leaves in the folder of an experiment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sstoken_plugin.experiments.results import read_json, write_json

# Of a folder with prepared data, where they are whole.
_WHOLE = "complete"


def what_was_found(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return what was found, see `prepare`; None if that is not there.

    Args:
        out: folder of the experiment.
        fingerprint: of all that was looked at.
    """
    found = read_json(_file(out, fingerprint))
    return found if found is not None and found.get("fingerprint") == fingerprint else None


def notes_of(found: Mapping[str, Any] | None) -> list[str]:
    """Return what is to be known of the data, one sentence each, see `prepare`."""
    if found is None:
        return []
    samples, held_out, shared = (found.get(key, {}) for key in ("samples", "held_out", "shared"))
    sizes = ", ".join(f"{count} for {name}" for name, count in held_out.items())
    counts = sorted(set(samples.values()))
    trained = str(counts[0]) if len(counts) == 1 else ", ".join(f"{arm}: {count}" for arm, count in samples.items())
    told = [f"Samples to train on: {trained}. Held out: {sizes or 'none'}."]
    worst: dict[str, int] = {}
    for key, count in shared.items():
        evaluation = key.partition("/")[2]
        worst[evaluation] = max(count, worst.get(evaluation, 0))
    return told + [
        f"Warning: {count} of the {held_out.get(name)} samples of evaluation {name} are, token for token, in the "
        "training data too: its numbers say less of new data; take them out of one of the two."
        for name, count in worst.items()
    ]


def read_preparation(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return what was found where its data are there, see `what_was_found`."""
    found = what_was_found(out, fingerprint)
    return found if found and all((Path(folder) / _WHOLE).exists() for folder in found["folders"]) else None


def write_preparation(out: Path, fingerprint: str, found: Mapping[str, Any]) -> None:
    """Write what was found; `folders` are those of the data that Axolotl has prepared."""
    write_json({"fingerprint": fingerprint, **found}, _file(out, fingerprint))


def _file(out: Path, fingerprint: str) -> Path:
    # One each: commands with other arms may share the folder, at the same time.
    return out / f"prepared-{fingerprint[:16]}.json"


@contextmanager
def prepared_data(folders: Sequence[Path]) -> Iterator[None]:
    """Let a block prepare data in folders whose names stand for their settings and files.

    What is not whole is removed before it. What was stays so where the block fails before it has written anything.

    Args:
        folders: see `runs.data_folder`.
    """
    before = {folder: _data_of_whole(folder) for folder in folders}
    for folder, data in before.items():
        if data is None and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # A kill from here on leaves data that nobody takes for whole.
        (folder / _WHOLE).unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        for folder, data in before.items():
            if data is not None and data == _data_in(folder):
                (folder / _WHOLE).touch()
        raise
    for folder in folders:
        (folder / _WHOLE).touch()


def _data_of_whole(folder: Path) -> set[Path] | None:
    return _data_in(folder) if (folder / _WHOLE).exists() else None


def _data_in(folder: Path) -> set[Path]:
    # Not its locks, which come and go.
    return set(folder.rglob("*.arrow"))
