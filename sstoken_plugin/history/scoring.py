"""Fills the cache of history losses ahead of training, in large batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sstoken_plugin.history.blocks import KEY_BYTES
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.selection.batching import in_batches, padded
from sstoken_plugin.selection.rows import rows_of
from sstoken_plugin.selection.samples import BatchLayout, keyed_samples, sample_keys, samples_in

# Where a sample stands, and its length: what is held of each that is missing.
_PLACE = np.dtype([("row", np.int64), ("place", np.int32), ("tokens", np.int32)])


@dataclass(frozen=True)
class Work:
    """What there is to score. Of samples, only keys and places are held.

    Attributes:
        samples: samples with response tokens in the data set, doubles counted once.
        missing: those whose losses are not in the cache, the longest first, so that a lack of memory shows at once:
            `row`, `place` among the samples of the row that have response tokens, and `tokens`.
        response_tokens: response tokens of all samples.
    """

    samples: int
    missing: NDArray[np.void]
    response_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of the samples that are missing, without padding."""
        return int(self.missing["tokens"].sum())

    def part(self, rank: int, ranks: int) -> Work:
        """Return what one of several processes does: each has as many samples, as long ones, as the others."""
        return Work(self.samples, self.missing[rank::ranks], self.response_tokens)


def work_left(losses: HistoryLosses, samples: Any) -> Work:
    """Find the samples whose losses are not in the cache.

    Args:
        losses: the history, with a store.
        samples: rows of a prepared data set.
    """
    assert losses.store is not None
    lengths: dict[bytes, int] = {}
    places: list[tuple[int, int, int]] = []
    for first, batch, row in rows_of(samples):
        of_row = Counter[int]()
        for sample in keyed_samples(batch, KEY_BYTES):
            number = int(row[sample.begin])
            if sample.key not in lengths:
                lengths[sample.key] = sample.responses
                places.append((first + number, of_row[number], sample.tokens))
            of_row[number] += 1
    missing = set(losses.store.missing(lengths, lengths.values()))
    chosen = [place for key, place in zip(lengths, places, strict=True) if key in missing]
    found = np.array(chosen, _PLACE)
    order = np.argsort(-found["tokens"], kind="stable")
    return Work(len(lengths), found[order], sum(lengths.values()))


def score(losses: HistoryLosses, model: Any, samples: Any, work: Work, batch_tokens: int) -> Iterator[int]:
    """Compute the missing losses and keep them, batch by batch.

    Args:
        losses: see `work_left`.
        model: the unwrapped model. It is not changed.
        samples: the data set that the work was found in.
        work: what to score.
        batch_tokens: tokens of a batch, padding included; a longer sample is a batch of its own.

    Yields:
        After each batch, which is written by then, its tokens without padding.
    """
    assert losses.store is not None
    device = next(model.parameters()).device
    # One by one, so that samples of a packed row cannot see each other.
    alone = (samples_to_score(samples[row])[place] for row, place, _ in work.missing.tolist())
    try:
        for some in in_batches(alone, batch_tokens):
            batch = {key: tensor.to(device) for key, tensor in padded(some).items()}
            losses.of(model, batch, BatchLayout.of(batch))
            losses.store.flush()
            yield sum(sample["input_ids"].shape[1] for sample in some)
    finally:
        losses.store.flush()


def samples_to_score(row: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Return the samples of a row that have response tokens, of which there is one at least, each in a batch of one."""
    parts = samples_in(row)
    return parts if len(parts) == 1 else [part for part in parts if sample_keys(part, KEY_BYTES)[0]]
