"""Scores samples without training, one record a sample: what `selections.jsonl` and the report show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sstoken_plugin.modes import without_trace
from sstoken_plugin.samples import as_batch
from sstoken_plugin.step import Phase, ScoredStep, TokenSelection
from sstoken_plugin.token_text import token_texts

Record = dict[str, Any]


def inspect_samples(
    selection: TokenSelection,
    model: Any,
    samples: Iterable[Mapping[str, Any]],
    phase: Phase,
    tokenizer: Any,
    count: Callable[[ScoredStep], None] = lambda step: None,
) -> Iterator[Record]:
    """Score samples as a training step would, each on its own, in evaluation mode.

    Args:
        selection: what scores.
        model: the unwrapped model. It is not changed.
        samples: rows of a prepared data set, with lists `input_ids` and `labels`.
        phase: what ranks.
        tokenizer: for the text of the tokens.
        count: is shown every scored sample.

    Yields:
        The fields of a line of selections.jsonl, see docs/configuration.md.
    """
    device = next(model.parameters()).device
    for index, sample in enumerate(samples):
        batch = as_batch(sample, device)
        step = selection.begin(model, batch, phase)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with without_trace(model), step.observed():
            step.loss(model(**inputs, use_cache=False))
        count(step)
        yield {"sample": index, **_fields(step, batch["input_ids"][0].tolist(), tokenizer)}


def _fields(step: ScoredStep, ids: list[int], tokenizer: Any) -> Record:
    places = step.layout.position.tolist()
    kept = step.layout.position[step.kept].tolist()
    scores = step.scores

    def spread(values: Tensor | None) -> list[float | None]:
        """One entry a token; null off the response and where there is no finite number."""
        entries: list[float | None] = [None] * len(ids)
        if values is not None:
            for place, value in zip(places, values.tolist(), strict=True):
                entries[place] = value if math.isfinite(value) else None
        return entries

    return {
        "input_ids": ids,
        "tokens": token_texts(tokenizer, ids),
        "response": _marks(places, len(ids)),
        "current_nll": spread(scores.current),
        "history_nll": spread(scores.history),
        "rel": spread(scores.rel),
        "attention": spread(scores.attention),
        "score": spread(scores.score),
        "selected": _marks(kept, len(ids)),
    }


def _marks(places: list[int], length: int) -> list[bool]:
    chosen = set(places)
    return [place in chosen for place in range(length)]


def write_records(records: Iterable[Record], file: Path) -> list[Record]:
    """Write records to a JSONL file as they come, and return them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with file.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            written.append(record)
    return written
