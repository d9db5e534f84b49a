"""Scores samples without training, one record a sample: what `selections.jsonl` and the report show."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.base.files import replacing
from sstoken_plugin.engine.modes import without_trace
from sstoken_plugin.engine.step import Phase, ScoredStep, TokenSelection
from sstoken_plugin.report.content import Record
from sstoken_plugin.report.token_text import token_texts
from sstoken_plugin.selection.batching import in_batches, padded
from sstoken_plugin.selection.samples import IGNORE_INDEX, BatchLayout, samples_in
from sstoken_plugin.selection.turns import EndTokens, Turns

# A batch of one sample, see `samples_in`.
Row = Mapping[str, Tensor]

# Of a batch, padding included: enough to keep a GPU busy, and less than a training step takes.
BATCH_TOKENS = 2048
_UNSAFE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def inspect_samples(
    selection: TokenSelection,
    model: Any,
    samples: Iterable[Mapping[str, Any]],
    phase: Phase,
    tokenizer: Any,
    count: Callable[[ScoredStep], None] = lambda step: None,
    known: Sequence[Record] = (),
) -> Iterator[Record]:
    """Score samples as a training step would, some at once, in evaluation mode.

    Args:
        selection: what scores.
        model: the unwrapped model. It is not changed.
        samples: rows of a prepared data set, see `as_batch`; of packed ones each sample is scored alone.
        phase: what ranks.
        tokenizer: for the text of the tokens.
        count: is shown every scored batch.
        known: records of the same samples by an earlier call: texts, and losses of a history that does not change, are
            taken from there.

    Yields:
        The fields of a line of selections.jsonl, see docs/configuration.md.
    """
    done = 0
    for rows, step in score_samples(selection, model, samples, phase, known):
        count(step)
        for record in records_of(step, rows, tokenizer, known[done : done + len(rows)]):
            yield {"sample": done, **record}
            done += 1


def score_samples(
    selection: TokenSelection,
    model: Any,
    samples: Iterable[Mapping[str, Any]],
    phase: Phase,
    known: Sequence[Record] = (),
) -> Iterator[tuple[list[Row], ScoredStep]]:
    """Score samples as `inspect_samples` does, and yield each batch: its rows, and what was scored.

    Where weights are sharded, every rank must call this, and exhaust it.
    """
    device = next(model.parameters()).device
    history = selection.history_model
    is_steady = history is not None and not history.changes
    done = 0
    alone = (part for sample in samples for part in samples_in(sample))
    for rows in in_batches(alone, BATCH_TOKENS):
        before = known[done : done + len(rows)]
        batch = {name: column.to(device) for name, column in padded(rows).items()}
        step = selection.begin(model, batch, phase, _history_nll(before) if is_steady else None, keeps=False)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with without_trace(model), step.observed():
            step.loss(model(**inputs, use_cache=False))
        yield rows, step
        done += len(rows)


def records_of(step: ScoredStep, rows: Sequence[Row], tokenizer: Any, known: Sequence[Record] = ()) -> list[Record]:
    """Return a record for each row of a batch, see `inspect_samples`.

    Args:
        step: the scored batch.
        rows: each a batch of one sample.
        tokenizer: for the text of the tokens.
        known: earlier records of the same samples, or nothing.
    """
    ids = [row["input_ids"][0].tolist() for row in rows]
    texts = [record["tokens"] for record in known] or [token_texts(tokenizer, tokens) for tokens in ids]
    targets = [row["labels"][0].tolist() for row in rows]
    return list(_fields(step, ids, targets, texts))


def ends_of_turns(record: Record, tokens: EndTokens) -> list[int]:
    """Return the places of the tokens that end a turn in a record.

    Args:
        record: see `inspect_samples`.
        tokens: what can end a turn.
    """
    labels = torch.tensor(record.get("labels", record["input_ids"]))[None]
    batch = {
        "input_ids": torch.tensor(record["input_ids"])[None],
        "labels": torch.where(torch.tensor(record["response"])[None], labels, IGNORE_INDEX),
    }
    layout = BatchLayout.of(batch)
    places: list[int] = layout.position[Turns.of(batch, layout, tokens).ends].tolist()
    return places


def _history_nll(records: Sequence[Record]) -> list[float] | None:
    """Return the losses of the history that records hold, in the order of their tokens."""
    return [
        math.nan if loss is None else loss
        for record in records
        for loss, response in zip(record["history_nll"], record["response"], strict=True)
        if response
    ] or None


def _fields(
    step: ScoredStep, ids: Sequence[list[int]], targets: Sequence[list[int]], texts: Sequence[list[str]]
) -> Iterator[Record]:
    scores = step.scores
    width = step.layout.shape[1]
    position = step.layout.position
    for number, (row_ids, labels, row_texts) in enumerate(zip(ids, targets, texts, strict=True)):
        mine = position // width == number
        places = (position[mine] - number * width).tolist()
        kept = (position[mine & step.kept] - number * width).tolist()
        length = len(row_ids)
        record: Record = {
            "input_ids": row_ids,
            "tokens": row_texts,
            "response": _marks(places, length),
            "current_nll": _spread(scores.current, mine, places, length),
            "history_nll": _spread(scores.history, mine, places, length),
            "rel": _spread(scores.rel, mine, places, length),
            "attention": _spread(scores.attention, mine, places, length),
            "score": _spread(scores.score, mine, places, length),
            "selected": _marks(kept, length),
        }
        # Only where they are somebody's own: else the response says it all.
        if any(labels[place] != row_ids[place] for place in places):
            record["labels"] = labels
        yield record


def _spread(values: Tensor | None, mine: Tensor, places: list[int], length: int) -> list[float | None]:
    """Return one entry a token; null off the response and where there is no finite number."""
    entries: list[float | None] = [None] * length
    if values is not None:
        for place, value in zip(places, values[mine].tolist(), strict=True):
            entries[place] = value if math.isfinite(value) else None
    return entries


def _marks(places: list[int], length: int) -> list[bool]:
    chosen = set(places)
    return [place in chosen for place in range(length)]


def write_records(records: Iterable[Record], file: Path) -> list[Record]:
    """Write records to a JSONL file, which is the old one until the last of them has come, and return them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with replacing(file) as new, new.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(_one_line(json.dumps(record, ensure_ascii=False, allow_nan=False)) + "\n")
            written.append(record)
    return written


def _one_line(text: str) -> str:
    """Escape what some readers of lines take for the end of one, and what UTF-8 does not have."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
