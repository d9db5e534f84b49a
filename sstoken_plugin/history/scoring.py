"""Fills the cache of history losses ahead of training, in large batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sstoken_plugin.history.blocks import KEY_BYTES
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.selection.batching import in_batches, padded
from sstoken_plugin.selection.samples import BatchLayout, sample_keys, samples_in


@dataclass(frozen=True)
class Work:
    """What there is to score.

    Attributes:
        samples: samples with response tokens in the data set, doubles counted once.
        missing: those whose losses are not in the cache, the longest first: a lack of memory shows at once.
        response_tokens: response tokens of all samples.
    """

    samples: int
    missing: list[dict[str, Tensor]]
    response_tokens: int


def work_left(losses: HistoryLosses, samples: Sequence[Any]) -> Work:
    """Find the samples whose losses are not in the cache.

    Args:
        losses: the history, with a store.
        samples: rows of a prepared data set.
    """
    assert losses.store is not None
    known: dict[bytes, dict[str, Tensor]] = {}
    lengths: dict[bytes, int] = {}
    for sample in samples:
        # One by one, so that of a packed row nothing is scored twice, and samples cannot see each other.
        for batch in samples_in(sample):
            for key, length in zip(*sample_keys(batch, KEY_BYTES), strict=True):
                known[key], lengths[key] = batch, length
    missing = [known[key] for key in losses.store.missing(lengths, lengths.values())]
    missing.sort(key=lambda batch: batch["input_ids"].shape[1], reverse=True)
    return Work(len(known), missing, sum(lengths.values()))


def score(losses: HistoryLosses, model: Any, work: Work, batch_tokens: int) -> Iterator[int]:
    """Compute the missing losses and keep them, batch by batch.

    Args:
        losses: see `work_left`.
        model: the unwrapped model. It is not changed.
        work: what to score.
        batch_tokens: tokens of a batch, padding included; a longer sample is a batch of its own.

    Yields:
        After each batch, its tokens without padding.
    """
    assert losses.store is not None
    device = next(model.parameters()).device
    try:
        for samples in in_batches(work.missing, batch_tokens):
            batch = {key: tensor.to(device) for key, tensor in padded(samples).items()}
            losses.of(model, batch, BatchLayout.of(batch))
            yield sum(sample["input_ids"].shape[1] for sample in samples)
    finally:
        losses.store.flush()
