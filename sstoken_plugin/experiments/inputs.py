"""The files of this machine that a run's result depends on beside its YAML, and their digests."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.base.files import expand
from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.selection.config import HISTORIES

# In bytes: of larger files of weights so many pieces of this length are hashed, spread evenly.
WHOLE, _PIECES, _PIECE = 2**28, 64, 2**18
# Of a model, beside its weights: what decides how text becomes tokens.
_WORDS = ("*.json", "*.jinja", "*.model", "*.txt")


def entries_of(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the data sets that a YAML names."""
    named = (found.get(key) for key in ("datasets", "test_datasets"))
    # What is neither a list nor an entry, Axolotl will refuse.
    return [entry for entries in named if isinstance(entries, list) for entry in entries if isinstance(entry, Mapping)]


def data_files(entries: Iterable[Mapping[str, Any]]) -> set[Path]:
    """Return the files of this machine that data sets are read from, as Axolotl finds them."""
    found: set[Path] = set()
    for entry in entries:
        path, files = Path(str(entry.get("path"))), entry.get("data_files") or ()
        named = [str(name) for name in files] if isinstance(files, list | tuple) else [str(files)]
        found |= {Path(name) for pattern in named for name in (pattern, *glob(pattern, recursive=True))}
        # Of a folder it reads the files that are named, or all.
        found |= set(_data_in(path)) if os.path.isdir(path) and not named else {path}
    # os.path, which takes what is too long for a path for none.
    return {file for file in found if os.path.isfile(file)}


def refuse_empty(entries: Iterable[Mapping[str, Any]]) -> None:
    """Refuse data sets of this machine that hold nothing, of which libraries say nothing that helps.

    Raises:
        ValueError: one does; one sentence with the fix.
    """
    for entry in entries:
        files = data_files([entry])
        if files and not any(file.stat().st_size for file in files):
            raise ValueError(f"{entry.get('path')} is empty; fill it, or name another file")


def _data_in(folder: Path) -> Iterator[Path]:
    """Yield what a data set may consist of."""
    for file in folder.rglob("*"):
        # Of Git and of downloads, and what the datasets library leaves there when it reads.
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not is_hidden and not file.name.startswith(("cache-", "tmp")):
            yield file


def refuse_among_inputs(experiment: Experiment) -> None:
    """Refuse a folder of results that a data set or a model is read from: inputs would be others after each run.

    Raises:
        ValueError: it is one; one sentence with key and fix.
    """
    yamls = [axolotl.yaml_of_arm(experiment.base, arm.sstoken, arm.changes) for arm in experiment.arms]
    yamls.append(axolotl.yaml_of_arm(experiment.base, None, {}))
    for folder in {str(folder) for found in yamls for folder in (*_models(found), *_tokenizers(found)) if folder}:
        if experiment.out.resolve() == expand(folder).resolve():
            raise ValueError(f"out: {experiment.out} is the folder of a model or tokenizer; name one of its own.")
    named = [entry for found in yamls for entry in entries_of(found)]
    named += [entry for asked in experiment.evaluations.values() for entry in getattr(asked, "datasets", None) or ()]
    for entry in named:
        folder = str(entry.get("path"))
        if (
            not entry.get("data_files")
            and os.path.isdir(folder)
            and experiment.out.resolve().is_relative_to(Path(folder).resolve())
        ):
            raise ValueError(
                f"out: {experiment.out} lies in {folder}, whose files are a data set; name a folder outside of it."
            )


def weights_of(train: Mapping[str, Any]) -> set[Path]:
    """Return the files of weights of this machine that a training begins from or is compared with."""
    return _in_folders(_models(train), ("*.safetensors", "*.bin"))


def words_of(found: Mapping[str, Any]) -> set[Path]:
    """Return the files of this machine that decide how text becomes tokens: of the tokenizer, and a template."""
    return templates_of([found, *entries_of(found)]) | _in_folders(_tokenizers(found), _WORDS)


def _models(train: Mapping[str, Any]) -> tuple[Any, ...]:
    history = (train.get("sstoken") or {}).get("history")
    return train.get("base_model"), train.get("lora_model_dir"), None if history in HISTORIES else history


def _tokenizers(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return found.get("base_model"), found.get("tokenizer_config")


def templates_of(blocks: Iterable[Mapping[str, Any]]) -> set[Path]:
    """Return the files of this machine that YAMLs, or entries of data sets, name as their template."""
    named = (str(block.get("chat_template_jinja") or "") for block in blocks)
    return {Path(template) for template in named if os.path.isfile(template)}


def _in_folders(folders: Iterable[Any], kinds: Iterable[str]) -> set[Path]:
    here = (expand(str(folder)) for folder in folders if folder)
    return {file for folder in here if os.path.isdir(folder) for kind in kinds for file in folder.glob(kind)}


def digest_of(file: Path, whole: float = math.inf) -> str:
    """Return a digest of a file, by parts of it if it has more bytes than `whole`.

    Raises:
        ValueError: it cannot be read; one sentence with the fix.
    """
    try:
        found = file.stat()
        return _digest_of(file, found.st_size, found.st_mtime_ns, found.st_size <= whole)
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}), and results depend on it; make it readable, or name another."
        ) from error


# A command asks for the runs of an experiment several times, and each of them for the same files.
@cache
def _digest_of(file: Path, size: int, changed: int, whole: bool) -> str:
    """Return the digest of a file that had this size, in bytes, and this time of its last change, in nanoseconds."""
    with file.open("rb") as opened:
        if whole:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        found = hashlib.sha256(str(size).encode())
        for piece in range(_PIECES):
            opened.seek((size - _PIECE) * piece // (_PIECES - 1))
            found.update(opened.read(_PIECE))
    return found.hexdigest()
