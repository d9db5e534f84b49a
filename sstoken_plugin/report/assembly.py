"""Puts the report page of a run or an inspection together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sstoken_plugin.base.files import write_bytes
from sstoken_plugin.base.numbers import counted
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.step import TokenSelection
from sstoken_plugin.report import Breakdown, Moment, Report, render
from sstoken_plugin.report.inspection import ends_of_turns
from sstoken_plugin.training.metrics import MEANINGS
from sstoken_plugin.training.setup import describe, describe_history, explain_share

PACKAGES = ("sstoken-plugin", "axolotl", "trl", "llamafactory", "ms-swift", "torch", "transformers", "peft")


def report_of(
    selection: TokenSelection,
    tokenizer: Any,
    moments: Sequence[Moment],
    tables: Sequence[Breakdown],
    facts: Mapping[str, str],
    log: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
) -> Report:
    """Return what the page shows.

    Args:
        selection: what selected.
        tokenizer: its model's.
        moments: see `Report`.
        tables: see `KeptCounts.tables`.
        facts: see `facts_of`.
        log: lines of the training's log.
        warnings: those raised about the selection.
    """
    moments = [_in_order(moment) for moment in moments]
    ends: list[list[int]] = []
    if selection.config.keep_eos and moments:
        ends = [ends_of_turns(record, selection.end_tokens) for record in moments[0].records]
    return Report(
        sentence=describe(selection, tokenizer),
        facts=facts,
        compare=selection.names.compare,
        share=explain_share(selection),
        settings=selection.config.model_dump(),
        versions={name: found for name in PACKAGES if (found := _version(name))},
        history="" if selection.history is None else describe_history(selection.history),
        moments=moments,
        ends=ends,
        log=log,
        warnings=warnings,
        breakdowns=tables,
        notes=MEANINGS,
    )


def facts_of(run: Run, model: Any, samples: Any, steps: int | None = None) -> dict[str, str]:
    """Return what was run, name to value, for `Report.facts`.

    Args:
        run: what the run is to the selection.
        model: its model.
        samples: the prepared data set.
        steps: optimizer steps that were taken; None without a training.
    """
    size = counted(len(samples), "sample") if hasattr(samples, "__len__") else "a stream of samples"
    found = {
        "model": run.base_model,
        "data": f"{run.data} ({size})" if run.data else size,
        "adapter": _adapters(model),
        "trainer": run.names.trainer,
        "steps": "" if steps is None else counted(steps, "step"),
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
    }
    return {name: value for name, value in found.items() if value}


def _adapters(model: Any) -> str:
    """Name the adapters of a model."""
    adapters = getattr(model, "peft_config", None) or {}
    return ", ".join(map(_adapter, adapters.values())) or "none: all weights"


def _adapter(config: Any) -> str:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    numbers = {"r": getattr(config, "r", None), "alpha": getattr(config, "lora_alpha", None)}
    return ", ".join([kind, *(f"{name} {value}" for name, value in numbers.items() if value is not None)])


def write_page(file: Path, report: Report) -> None:
    """Write the page to a file, and its folder where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(render(report).encode(), file)


def _in_order(moment: Moment) -> Moment:
    """Return a moment with its samples in the order of the data, where they were scored in another."""
    return replace(moment, records=sorted(moment.records, key=lambda record: record.get("sample", 0)))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
