"""What experiments keep: the result of a run, and other small JSON files, whole or not there."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from sstoken_plugin.base.files import replacing
from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.experiments.measures import Measure

LOG = logger(__name__)

NAME = "result.json"
# One sentence of a job that failed.
FAULT = "fault.txt"
# Of a run that has trained, and is not measured yet.
TRAINED = "trained.json"
# Of a run whose evaluations are not all had yet.
MEASURED = "measured.json"
# Exit code of the process of a run that another process has.
BUSY = 75
# Of the file; another one is not read.
FORMAT = 1
# What UTF-8 cannot write is in names of files that it did not make.
_NAMES = "surrogatepass"
PACKAGES = ("sstoken-plugin", "axolotl", "torch", "transformers", "peft", "lm_eval")


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        arm: its name.
        seed: of its training.
        fingerprint: of its settings.
        settings: see `Run.settings`.
        measures: by `EVALUATION/MEASURE`.
        kept: what it trained on: means over the log of the metrics of the selection; empty for plain training.
        steps: optimizer steps; 0 where they are not known.
        train_seconds: of all parts of a training that was stopped.
        seconds: of the whole run, start and evaluation included.
        versions: package name to version, and `device`.
    """

    arm: str
    seed: int
    fingerprint: str
    settings: Mapping[str, Any]
    measures: Mapping[str, Measure]
    kept: Mapping[str, float]
    steps: int
    train_seconds: float
    seconds: float
    versions: Mapping[str, str]


def make_folder(out: Path) -> None:
    """Make the folder of the results where there is none.

    Raises:
        ValueError: that, or a file in it, cannot be had; one sentence with key and fix.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(
            f"out: {out} cannot be made, or not written to ({error.strerror}); name another folder."
        ) from error


def write_result(result: Result, folder: Path) -> None:
    """Write a result into the folder of its run."""
    measures = {name: measure.as_json() for name, measure in result.measures.items()}
    write_json({"format": FORMAT, **vars(result), "measures": measures}, folder / NAME)


def read_result(folder: Path) -> Result | None:
    """Return the result of a run; None where there is none.

    A file that is damaged is put aside, so that the run is had again, and a warning says so.

    Raises:
        ValueError: it cannot be read, which says nothing of what is in it.
    """
    file = folder / NAME
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}); make it readable, or try again where its disk comes back."
        ) from error
    try:
        return _result(_loads(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _put_aside(file, error)
        return None


def _result(found: Any) -> Result:
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise ValueError("it is none of this release's results")
    measures = {str(name): Measure.from_json(value) for name, value in found["measures"].items()}
    return Result(
        arm=_text(found["arm"]),
        seed=int(found["seed"]),
        fingerprint=_text(found["fingerprint"]),
        settings=_settings(found["settings"]),
        measures=measures,
        kept={str(name): _number(value) for name, value in found["kept"].items()},
        steps=int(found["steps"]),
        train_seconds=_number(found["train_seconds"]),
        seconds=_number(found["seconds"]),
        versions={str(name): _text(value) for name, value in found["versions"].items()},
    )


def _settings(found: Mapping[str, Any]) -> dict[str, Any]:
    evaluations = {str(name): dict(asked) for name, asked in found["evaluations"].items()}
    return {**found, "data": dict(found["data"]), "evaluations": evaluations}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _put_aside(file: Path, error: Exception) -> None:
    aside = file.with_name(f"{file.name}.damaged")
    try:
        os.replace(file, aside)
    except OSError:
        # Another process has, or the folder can only be read: either way it is no result.
        aside = file
    LOG.warning(
        "%s is damaged (%s): the run counts as not had yet; the file is now %s.", file, in_short(error), aside.name
    )


def write_json(content: Any, file: Path) -> None:
    """Write JSON to a file that is there as before, or whole, also where other processes write it too.

    Raises:
        ValueError: a number in it is not finite.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    with replacing(file) as new, new.open("w", encoding="utf-8", errors=_NAMES) as opened:
        opened.write(text + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file of keys; None where it is not there, or no such file."""
    try:
        found = _loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _loads(content: bytes) -> Any:
    return json.loads(content.decode("utf-8", _NAMES))


def versions_here() -> dict[str, str]:
    """Return what a result depends on beside its settings: packages, Python, the device."""
    import torch

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {**found, "python": platform.python_version(), "device": device}
