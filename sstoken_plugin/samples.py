"""Which positions of a batch belong to which sample, and which are prompt and which response.

Terms: a batch has B rows of S positions. A *sample* is one training example: a row of a padded batch, or
one of several in a packed row. A *flat* position is `row * S + column`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100


@dataclass(frozen=True)
class BatchLayout:
    """The response tokens of a batch, sample by sample, and its prompt tokens.

    R is the number of response tokens, N the number of samples that have any.

    Attributes:
        shape: (B, S).
        position: int64 [R], flat position of each response token, ascending.
        sample: int64 [R], number of the token's sample, 0 to N - 1, ascending.
        lengths: int64 [N], response tokens of each sample.
        target: int64 [R], token ids.
        prompt: bool [B, S], the prompt tokens: real tokens with label -100.
        has_prompt: bool [N], whether the sample has any prompt token.
        fingerprint: int64 [N], a hash of the sample's token ids, the same in every batch it appears in.
    """

    shape: tuple[int, int]
    position: Tensor
    sample: Tensor
    lengths: Tensor
    target: Tensor
    prompt: Tensor
    has_prompt: Tensor
    fingerprint: Tensor

    @property
    def logit_position(self) -> Tensor:
        """int64 [R], flat position whose logits predict each response token: the one before it."""
        return self.position - 1

    @property
    def first(self) -> Tensor:
        """int64 [N], number of each sample's first response token among the R."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @property
    def index_in_sample(self) -> Tensor:
        """int64 [R], 0 for the first response token of its sample, 1 for the next, and so on."""
        return torch.arange(len(self.position), device=self.position.device) - self.first[self.sample]

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], *, with_sample_starts: bool = False) -> BatchLayout:
        """Read the layout off a collated batch.

        Args:
            batch: `input_ids` and `labels`, int64 [B, S]; `attention_mask` [B, S] where there is padding (on
                either side); `position_ids` [B, S] where rows are packed: a 0 starts a sample.
            with_sample_starts: also take in a labelled token that starts a packed sample. Such a token is
                predicted from another sample, so it is never ranked, but plain training learns from it.
        """
        input_ids, labels = batch["input_ids"], batch["labels"]
        real, row_starts, starts = _boundaries(batch)
        segment = torch.cumsum(starts.flatten(), 0) - 1

        response = labels != IGNORE_INDEX
        response &= ~(row_starts if with_sample_starts else starts)
        prompt = real & (labels == IGNORE_INDEX)

        position = response.flatten().nonzero().squeeze(1)
        segments, sample, lengths = torch.unique_consecutive(segment[position], return_inverse=True, return_counts=True)
        prompts = _sum_by(segment, prompt.flatten().long())
        return cls(
            shape=(labels.shape[0], labels.shape[1]),
            position=position,
            sample=sample,
            lengths=lengths,
            target=labels.flatten()[position],
            prompt=prompt,
            has_prompt=prompts[segments] > 0,
            fingerprint=_fingerprints(input_ids.flatten(), real.flatten(), segment)[segments],
        )


def as_batch(sample: Mapping[str, Any], device: Any = None) -> dict[str, Tensor]:
    """Turn a row of a prepared data set, lists `input_ids`, `labels`, ..., into a batch of one sample."""
    columns = ("input_ids", "labels", "attention_mask", "position_ids")
    return {key: torch.tensor(sample[key], device=device)[None] for key in columns if key in sample}


def sample_keys(batch: Mapping[str, Tensor], size: int) -> tuple[list[bytes], list[int]]:
    """Hash the tokens and the response mask of every sample that has response tokens, in their order.

    A sample has the same key in every batch, padded or packed, and alone.

    Args:
        batch: see `BatchLayout.of`.
        size: bytes of a key.

    Returns:
        The keys, and the number of response tokens of each sample.
    """
    real, _, starts = (marks.flatten() for marks in _boundaries(batch))
    response = (batch["labels"].flatten() != IGNORE_INDEX) & ~starts
    # One transfer from the device for all samples.
    table = torch.stack([batch["input_ids"].flatten(), response.long(), real.long(), starts.long()]).cpu().numpy()
    keys, lengths = [], []
    for tokens, is_response, is_real, _ in np.split(table, np.flatnonzero(table[3])[1:], axis=1):
        if is_response.any():
            kept = is_real.astype(bool)
            content = hashlib.blake2b(tokens[kept].astype("<u4").tobytes(), digest_size=size)
            content.update(np.packbits(is_response[kept].astype(bool)).tobytes())
            keys.append(content.digest())
            lengths.append(int(is_response.sum()))
    return keys, lengths


def mix(bits: Tensor) -> Tensor:
    """Scramble int64 values, any shape, so that every output bit depends on every input bit.

    The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), on two's complement integers.
    """
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


def _boundaries(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return where real tokens are, where rows start and where samples start, each bool [B, S]."""
    labels, mask, position_ids = batch["labels"], batch.get("attention_mask"), batch.get("position_ids")
    real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask != 0
    row_starts = torch.zeros_like(real)
    row_starts[:, 0] = True
    return real, row_starts, row_starts if position_ids is None else row_starts | (position_ids == 0)


def _sum_by(group: Tensor, values: Tensor) -> Tensor:
    """Sum `values` [P] by group number [P]; the result has P entries, enough for any grouping."""
    return torch.zeros_like(values).scatter_add_(0, group, values)


def _fingerprints(input_ids: Tensor, real: Tensor, segment: Tensor) -> Tensor:
    """Hash the real tokens of each segment, in their order and regardless of padding, int64 [P]."""
    count = torch.cumsum(real.long(), 0)
    before = torch.full_like(count, len(count)).scatter_reduce_(0, segment, count - real.long(), "amin")
    place = count - before[segment]
    return _sum_by(segment, torch.where(real, mix(mix(input_ids) + place), 0))
