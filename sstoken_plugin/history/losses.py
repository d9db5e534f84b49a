"""Losses of the history model on a batch: from the store where they are kept, else from a forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sstoken_plugin.engine.modes import without_trace
from sstoken_plugin.engine.output_head import ProvenWays, response_nll
from sstoken_plugin.engine.sharding import any_rank
from sstoken_plugin.history.base import History
from sstoken_plugin.history.blocks import KEY_BYTES, Losses, resolution
from sstoken_plugin.history.store import LossStore
from sstoken_plugin.selection.batching import in_batches, padded
from sstoken_plugin.selection.samples import BatchLayout, can_be_cut, sample_keys, samples_of

# How long, and how far apart, a file that another process holds is asked again.
_MOST_SECONDS, _SECONDS = 600.0, 5.0
# With the keys of its samples, and how many response tokens each has.
_KeyedBatch = tuple[dict[str, Tensor], list[bytes], list[int]]


class HistoryLosses:
    """Computes the losses of a history model, or finds them.

    Args:
        history: the history model; None if the store holds every loss, so that no model is needed.
        store: where losses are kept; None to compute them each time.
        precision: makes the context in which the trained model runs, such as an autocast.
        together: whether all ranks must run the history's forward pass if one does, as where its weights are sharded.

    Attributes:
        ways: remembers which losses serve the history's output head.
    """

    def __init__(
        self,
        history: History | None,
        store: LossStore | None = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        together: bool = False,
    ):
        self.history = history
        self.store = store
        self.ways = ProvenWays()
        self._precision = precision
        self._together = together

    def of(
        self, model: Any, batch: Mapping[str, Tensor], layout: BatchLayout, *, keeps: bool = True
    ) -> tuple[Tensor, int]:
        """Return the history's loss on each response token, float32 [R], and the number of samples found kept.

        Args:
            model: the unwrapped model in training. It is not changed.
            batch: see `BatchLayout.of`, and whatever else the model takes.
            layout: its layout.
            keeps: whether losses that are computed may be kept.

        Raises:
            RuntimeError: there is no history model and a loss is not in the store.
        """
        if self.store is None:
            return self._computed(model, batch, layout), 0
        keys, lengths = sample_keys(batch, KEY_BYTES)
        # Plain training of packed rows learns from a sample's first token too, if it is labelled. Its loss
        # depends on the sample before, so that such a batch is not one to keep.
        is_kept = sum(lengths) == len(layout.position)
        found = dict(zip(keys, self._kept(keys, lengths) if is_kept else [None] * len(keys), strict=True))
        hits = sum(found[key] is not None for key in keys)
        is_missing = hits < len(keys) or not is_kept
        if any_rank(is_missing, layout.position.device) if self._together else is_missing:
            missing = {key for key in keys if found[key] is None}
            parts = []
            if is_kept and hits and not self._together and can_be_cut(batch):
                parts = _batches_of(samples_of(batch), missing, layout.real.numel())
            if parts:
                new = self._computed_of(model, parts)
            else:
                computed = self._computed(model, batch, layout)
                if not is_kept:
                    return computed, 0
                by_key = zip(keys, computed.cpu().split(lengths), strict=True)
                new = {key: losses.numpy() for key, losses in by_key if found[key] is None}
            found |= self.store.put(new) if keeps else self.store.rounded(new)
        losses = np.concatenate([np.empty(0, np.float32), *(found[key] for key in keys)])
        return torch.from_numpy(losses).to(layout.position.device), hits

    def rel(self, history: Tensor, current: Tensor) -> Tensor:
        """Return REL = h - c (arXiv 2510.18250, Eq. 3), float32 [R].

        A difference that the store does not resolve is none: else a model that has not changed yet would have a REL
        of rounding errors, which scaling blows up to the whole range.

        Args:
            history: h, float32 [R].
            current: c, float32 [R].
        """
        rel = history - current
        if self.store is None:
            return rel
        # A loss that is not finite has no resolution, and no REL either.
        return torch.where(rel.isfinite() & (rel.abs() <= resolution(history)), 0, rel)

    def _kept(self, keys: list[bytes], lengths: list[int]) -> list[Losses | None]:
        assert self.store is not None
        found = self.store.get(keys, lengths)
        # Where there is no model that could compute them, a file that is held is waited for.
        deadline = time.monotonic() + _MOST_SECONDS
        while (
            self.history is None
            and self.store.is_waited_for
            and any(losses is None for losses in found)
            and time.monotonic() < deadline
        ):
            time.sleep(_SECONDS)
            found = self.store.get(keys, lengths)
        return found

    def _computed_of(self, model: Any, batches: list[_KeyedBatch]) -> dict[bytes, Losses]:
        new: dict[bytes, Losses] = {}
        for batch, keys, lengths in batches:
            computed = self._computed(model, batch, BatchLayout.of(batch)).cpu().split(lengths)
            new |= {key: losses.numpy() for key, losses in zip(keys, computed, strict=True)}
        return new

    def _computed(self, model: Any, batch: Mapping[str, Tensor], layout: BatchLayout) -> Tensor:
        if self.history is None:
            raise RuntimeError(
                "sstoken.history_cache held every loss when this run started, so no copy of the first weights was "
                "kept, and now a loss is missing; resume from the last checkpoint with sstoken.history_cache: false."
            )
        # In this order, because a model may write to the weights that it has while it runs, and back.
        with self.history.active(model) as past, without_trace(past), self._precision():
            return response_nll(past, batch, layout, self.ways)


def _batches_of(samples: list[dict[str, Tensor]], missing: set[bytes], tokens: int) -> list[_KeyedBatch]:
    """Return the samples of a batch whose losses are missing, in batches without the others.

    Args:
        samples: each alone.
        missing: keys.
        tokens: that a batch may have at most, padding included; a longer sample has one of its own.

    Returns:
        Batches with the keys and the response tokens of their samples; none where a sample has another key alone than
        among others, as with gaps and positions of its own.
    """
    asked: dict[bytes, dict[str, Tensor]] = {}
    for sample in samples:
        keys, _ = sample_keys(sample, KEY_BYTES)
        asked |= {key: sample for key in keys if key in missing}
    ordered = sorted(asked.values(), key=lambda sample: sample["input_ids"].shape[1])
    batches = [(batch, *sample_keys(batch, KEY_BYTES)) for batch in map(padded, in_batches(ordered, tokens))]
    there = {key for _, keys, _ in batches for key in keys}
    return batches if there == missing else []
