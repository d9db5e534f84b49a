"""Scores samples without training, one record a sample: what `selections.jsonl` and the report show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.modes import without_trace
from sstoken_plugin.step import Phase, TokenSelection

Record = dict[str, Any]

# Columns of a prepared data set that are per-token and that a forward pass may need.
_COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids")


def inspect_samples(
    selection: TokenSelection, model: Any, samples: Iterable[Mapping[str, Any]], phase: Phase, tokenizer: Any
) -> Iterator[Record]:
    """Score samples as a training step would, each on its own, in evaluation mode.

    Args:
        selection: what scores.
        model: the unwrapped model. It is not changed.
        samples: rows of a prepared data set, with lists `input_ids` and `labels`.
        phase: what ranks.
        tokenizer: for the text of the tokens.

    Yields:
        The fields of a line of selections.jsonl, see docs/configuration.md.
    """
    device = next(model.parameters()).device
    for index, sample in enumerate(samples):
        batch = {key: torch.tensor(sample[key], device=device)[None] for key in _COLUMNS if key in sample}
        step = selection.begin(model, batch, phase)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with without_trace(model), step.observed():
            step.loss(model(**inputs, use_cache=False))
        scores = step.scores
        length = batch["input_ids"].shape[1]

        def spread(values: Tensor | None, at: Tensor = step.layout.position, length: int = length) -> list:
            """One entry a token; null off the response and where there is no finite number."""
            spread: list[float | None] = [None] * length
            if values is not None:
                for place, value in zip(at.tolist(), values.float().tolist(), strict=True):
                    spread[place] = value if math.isfinite(value) else None
            return spread

        response, selected = torch.zeros(2, length, dtype=torch.bool).unbind()
        response[step.layout.position.cpu()] = True
        selected[step.layout.position[step.kept].cpu()] = True
        ids = batch["input_ids"][0].tolist()
        yield {
            "sample": index,
            "input_ids": ids,
            "tokens": [tokenizer.decode([token]) for token in ids],
            "response": response.tolist(),
            "current_nll": spread(scores.current),
            "history_nll": spread(scores.history),
            "rel": spread(scores.rel),
            "attention": spread(scores.attention),
            "score": spread(scores.score),
            "selected": selected.tolist(),
        }


def write_records(records: Iterable[Record], file: Path) -> list[Record]:
    """Write records to a JSONL file as they come, and return them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with file.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            written.append(record)
    return written
