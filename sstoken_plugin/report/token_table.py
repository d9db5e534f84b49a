"""A table of the tokens of scored samples, for trackers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from sstoken_plugin.base.visible_text import visible
from sstoken_plugin.report.content import Record

COLUMNS = ("sample", "place", "token", "kept", "score", "rel", "attention", "current_nll", "history_nll")
MOST_ROWS = 2000


def rows_of(records: Sequence[Record]) -> list[list[Any]]:
    """Return a row for each response token, with one entry for each of `COLUMNS`; at most `MOST_ROWS`.

    Args:
        records: scored samples.
    """
    return list(islice(_rows(records), MOST_ROWS))


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


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in TensorBoard's Markdown, which shows no markup of the data's own when it is code."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
        cells[2] = "`" + cells[2].replace("`", "'").replace("|", "¦").replace("\n", "⏎") + "`"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
