"""Batches of samples that are scored outside of a training's own data loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sstoken_plugin.selection.samples import IGNORE_INDEX


def in_batches(samples: Iterable[Mapping[str, Tensor]], tokens: int) -> Iterator[list[Mapping[str, Tensor]]]:
    """Yield consecutive samples together, as many as fit.

    Args:
        samples: see `padded`.
        tokens: of a batch, padding included; a longer sample is a batch of its own.
    """
    batch: list[Mapping[str, Tensor]] = []
    width = 0
    for sample in samples:
        length = sample["input_ids"].shape[1]
        width = max(width, length)
        if batch and (len(batch) + 1) * width > tokens:
            yield batch
            batch, width = [], length
        batch.append(sample)
    if batch:
        yield batch


def padded(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put samples into one batch, padded on the right.

    Args:
        samples: see `samples.as_batch`: `input_ids`, `labels`, and `attention_mask` and `position_ids` if there are
            any, int64 [1, length].

    Returns:
        `input_ids`, `labels` and `attention_mask`, and `position_ids` if a sample has any, int64 [samples, longest].
    """

    def column(name: str, fill: int) -> Tensor:
        return pad_sequence([sample[name][0] for sample in samples], batch_first=True, padding_value=fill)

    marks = [sample.get("attention_mask", torch.ones_like(sample["labels"]))[0] for sample in samples]
    mask = pad_sequence(marks, batch_first=True)
    batch = {"input_ids": column("input_ids", 0), "labels": column("labels", IGNORE_INDEX), "attention_mask": mask}
    if any("position_ids" in sample for sample in samples):
        counted = [torch.arange(sample["labels"].shape[1], device=mask.device) for sample in samples]
        positions = [sample.get("position_ids", own[None])[0] for sample, own in zip(samples, counted, strict=True)]
        batch["position_ids"] = pad_sequence(positions, batch_first=True)
    return batch
