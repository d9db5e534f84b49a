"""What runs were set to, and where that differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sstoken_plugin.report.runs.finished import FinishedRun

# They name a run, or say where it writes, and change nothing in it; the last two are `per_device_...` again.
_NAMES = {"output_dir", "logging_dir", "run_name", "hub_model_id", "hub_token", "resume_from_checkpoint",
          "train_batch_size", "eval_batch_size"}  # fmt: skip
UNKNOWN, NONE = "not known", "plain training"
_OWN = "sstoken."

# Name of a setting, and what each run has.
Row = tuple[str, list[str]]


def rows_of(runs: Sequence[FinishedRun]) -> tuple[list[Row], list[Row]]:
    """Return the settings of which runs have different values, and the others.

    What is not known of a run, as most of a plain training, is no difference.
    """
    tables = [_settings(run) for run in runs]
    differ, same = list[Row](), list[Row]()
    for name in dict.fromkeys(name for table in tables for name in table):
        missing = [NONE if name.startswith(_OWN) and not run.selects else UNKNOWN for run in runs]
        values = [table.get(name, other) for table, other in zip(tables, missing, strict=True)]
        (differ if len({*values} - {UNKNOWN, NONE}) > 1 else same).append((name, values))
    return differ, same


def _settings(run: FinishedRun) -> dict[str, str]:
    found: dict[str, Any] = {}
    if run.report is not None:
        found |= {f"{_OWN}{name}": value for name, value in run.report.settings.items()}
        found |= {f"{name} (version)": value for name, value in run.report.versions.items()}
    found |= {str(name): value for name, value in run.settings.items() if name not in _NAMES}
    return {name: _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    if isinstance(value, float):
        # 1.0 and 1 are the same.
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
