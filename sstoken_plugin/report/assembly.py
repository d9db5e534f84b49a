"""Puts the report page of a run or an inspection together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sstoken_plugin.base.files import write_bytes
from sstoken_plugin.engine.step import TokenSelection
from sstoken_plugin.report import Breakdown, Moment, Report, render
from sstoken_plugin.report.inspection import ends_of_turns
from sstoken_plugin.training.metrics import MEANINGS
from sstoken_plugin.training.setup import describe, describe_history, explain_share

RATIO = "sstoken/selected_ratio"
PACKAGES = ("sstoken-plugin", "axolotl", "torch", "transformers", "peft")


def report_of(
    selection: TokenSelection,
    tokenizer: Any,
    moments: Sequence[Moment],
    tables: Sequence[Breakdown],
    log: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
) -> Report:
    """Return what the page shows.

    Args:
        selection: what selected.
        tokenizer: its model's.
        moments: see `Report`.
        tables: see `KeptCounts.tables`.
        log: lines of the training's log.
        warnings: those raised about the selection.
    """
    share = explain_share(selection)
    moments = [_in_order(moment) for moment in moments]
    ends: list[list[int]] = []
    if selection.config.keep_eos and moments:
        ends = [ends_of_turns(record, selection.end_tokens) for record in moments[0].records]
    return Report(
        sentence=describe(selection, tokenizer),
        settings=selection.config.model_dump(),
        versions={name: found for name in PACKAGES if (found := _version(name))},
        history="" if selection.history is None else describe_history(selection.history),
        moments=moments,
        ends=ends,
        log=log,
        warnings=warnings,
        breakdowns=tables,
        notes=MEANINGS if not share else {**MEANINGS, RATIO: f"{MEANINGS[RATIO]}; {share}"},
    )


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
