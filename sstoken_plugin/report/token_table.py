"""A table of the tokens of the probe samples for W&B and TensorBoard, where a run reports to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers.integrations import TensorBoardCallback, WandbCallback

from sstoken_plugin.base.visible_text import visible
from sstoken_plugin.report.content import Record

NAME = "sstoken/tokens"
COLUMNS = ("sample", "place", "token", "kept", "score", "rel", "attention", "current_nll", "history_nll")
MOST_ROWS = 2000


def send(callbacks: Sequence[Any], records: Sequence[Record], step: int) -> None:
    """Log the table through the callbacks of a trainer that report to a tracker.

    Args:
        callbacks: of the trainer.
        records: scored samples.
        step: of the run.
    """
    rows = [row for row, _ in zip(_rows(records), range(MOST_ROWS), strict=False)]
    for callback in callbacks:
        if isinstance(callback, WandbCallback):
            import wandb

            if wandb.run is not None:
                table = wandb.Table(columns=list(COLUMNS), data=rows)
                wandb.run.log({NAME: table, "train/global_step": step})
        elif isinstance(callback, TensorBoardCallback) and getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_text(NAME, _markdown(rows), step)


def _rows(records: Sequence[Record]) -> Iterator[list[Any]]:
    for record in records:
        for place in (place for place, is_response in enumerate(record["response"]) if is_response):
            columns = (
                record["score"],
                record["rel"],
                record["attention"],
                record["current_nll"],
                record["history_nll"],
            )
            numbers = [column[place] for column in columns]
            yield [record["sample"], place, visible(record["tokens"][place]), record["selected"][place], *numbers]


def _markdown(rows: Sequence[list[Any]]) -> str:
    """Return a table in TensorBoard's Markdown, which shows no markup of the data's own when it is code."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
        cells[2] = "`" + cells[2].replace("`", "'").replace("|", "¦").replace("\n", "⏎") + "`"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
