"""Which positions of a batch belong to which sample, and which are prompt and which response.

Terms: a batch has B rows of S positions. A *real* token is one that is no padding: its attention mask is not 0. A
*sample* is one training example: the real tokens of a row, or of one of the samples in a packed row. Its *response* is
what is labelled but for its first token, which nothing of it predicts, and its *prompt* what is not labelled. A *flat*
position is `row * S + column`.

Whatever reads samples, for training, inspection or a cache, reads them here.
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
# What of a row of a data set says where its samples are, and what a model reads of it.
COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids")


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
        real: bool [B, S], the tokens that are no padding.
        segment: int64 [B * S], number of the sample that each flat position stands in, those without response too.
    """

    shape: tuple[int, int]
    position: Tensor
    sample: Tensor
    lengths: Tensor
    target: Tensor
    prompt: Tensor
    has_prompt: Tensor
    fingerprint: Tensor
    real: Tensor
    segment: Tensor

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
    def of(cls, batch: Mapping[str, Tensor], *, as_plain: bool = False) -> BatchLayout:
        """Read the layout off a collated batch.

        Args:
            batch: `input_ids` and `labels`, int64 [B, S]; `attention_mask` [B, S] where there is padding (on
                either side); `position_ids` [B, S] where rows are packed: a 0 starts a sample.
            as_plain: take in every token that plain training learns from: also one that starts a sample, which is
                predicted from another sample or from padding, and labelled padding. These are never ranked.
        """
        input_ids, labels = batch["input_ids"], batch["labels"]
        real, starts = boundaries(batch)
        # Padding before the first sample belongs to none, and counts nowhere.
        segment = (torch.cumsum(starts.flatten(), 0) - 1).clamp(min=0)

        labelled = labels != IGNORE_INDEX
        response = labelled & real & ~starts
        if as_plain:
            response = labelled.clone()
            response[:, 0] = False
        prompt = real & ~labelled

        position = response.flatten().nonzero().squeeze(1)
        segments, sample, lengths = torch.unique_consecutive(segment[position], return_inverse=True, return_counts=True)
        prompts = sum_by(segment, prompt.flatten().long())
        return cls(
            shape=(labels.shape[0], labels.shape[1]),
            position=position,
            sample=sample,
            lengths=lengths,
            target=labels.flatten()[position],
            prompt=prompt,
            has_prompt=prompts[segments] > 0,
            fingerprint=_fingerprints(input_ids.flatten(), real.flatten(), segment)[segments],
            real=real,
            segment=segment,
        )

    def count(self, marks: Tensor) -> Tensor:
        """Return how many of the marks on response tokens, bool [R], each sample has, int64 [N]."""
        return torch.zeros_like(self.lengths).scatter_add_(0, self.sample, marks.long())


def as_batch(sample: Mapping[str, Any], device: Any = None) -> dict[str, Tensor]:
    """Turn a row of a prepared data set, lists `input_ids`, `labels`, ..., into a batch of one sample.

    Padding that the row has at its ends is left out, and so are positions that count from 0 as those of a model do.
    """
    batch = {key: torch.tensor(sample[key], device=device)[None] for key in COLUMNS if key in sample}
    real, _ = boundaries(batch)
    (places,) = real[0].nonzero(as_tuple=True)
    if len(places):
        batch = {key: column[:, places[0] : places[-1] + 1] for key, column in batch.items()}
    positions = batch.get("position_ids")
    if positions is not None and torch.equal(positions[0], torch.arange(positions.shape[1], device=device)):
        del batch["position_ids"]
    return batch


def sample_keys(batch: Mapping[str, Tensor], size: int) -> tuple[list[bytes], list[int]]:
    """Hash all that the losses of a sample depend on, for every sample that has response tokens, in their order.

    A sample has the same key in every batch, padded or packed, and alone.

    Args:
        batch: see `BatchLayout.of`.
        size: bytes of a key.

    Returns:
        The keys, and the number of response tokens of each sample.
    """
    real, starts = (marks.flatten() for marks in boundaries(batch))
    labels = batch["labels"].flatten()
    response = (labels != IGNORE_INDEX) & real & ~starts
    # One transfer from the device for all samples.
    columns = [batch["input_ids"].flatten(), labels, response.long(), real.long(), starts.long()]
    if (positions := batch.get("position_ids")) is not None:
        columns.append(positions.flatten())
    table = torch.stack(columns).cpu().numpy()
    keys, lengths = [], []
    # What stands before the first start is padding.
    for part in np.split(table, np.flatnonzero(table[4]), axis=1)[1:]:
        tokens, targets, is_response, is_real = part[:4]
        asked = is_response.astype(bool)
        if not asked.any():
            continue
        kept = is_real.astype(bool)
        content = hashlib.blake2b(tokens[kept].astype("<u4").tobytes(), digest_size=size)
        content.update(np.packbits(asked[kept]).tobytes())
        if (targets[asked] != tokens[asked]).any():
            # Labels of somebody's own, other tokens than those that are read.
            content.update(b"labels" + targets[asked].astype("<u4").tobytes())
        inside = kept[: np.flatnonzero(kept)[-1] + 1]
        if not inside.all():
            # Tokens in the midst that are not attended to.
            content.update(b"mask" + np.packbits(inside).tobytes())
        if len(part) == 6 and (part[5][kept] != np.arange(kept.sum())).any():
            # Positions of somebody's own.
            content.update(b"positions" + part[5][kept].astype("<u4").tobytes())
        keys.append(content.digest())
        lengths.append(int(asked.sum()))
    return keys, lengths


def boundaries(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return where real tokens are and where samples start, each bool [B, S]."""
    labels, mask, position_ids = batch["labels"], batch.get("attention_mask"), batch.get("position_ids")
    real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask != 0
    passed = torch.cumsum(real, 1)
    if position_ids is None:
        return real, real & (passed == 1)
    # Padding may stand before the first token of a sample, also inside of a row, and have its position 0.
    before = torch.where(position_ids == 0, passed - real.long(), 0).cummax(1).values
    return real, real & (passed == before + 1)


def sum_by(group: Tensor, values: Tensor) -> Tensor:
    """Sum `values` [P] by group number [P]; the result has P entries, enough for any grouping."""
    return torch.zeros_like(values).scatter_add_(0, group, values)


def mix(bits: Tensor) -> Tensor:
    """Scramble int64 values, any shape, so that every output bit depends on every input bit.

    The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), on two's complement integers.
    """
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


def _fingerprints(input_ids: Tensor, real: Tensor, segment: Tensor) -> Tensor:
    """Hash the real tokens of each segment, in their order and regardless of padding, int64 [P]."""
    count = torch.cumsum(real.long(), 0)
    before = torch.full_like(count, len(count)).scatter_reduce_(0, segment, count - real.long(), "amin")
    place = count - before[segment]
    return sum_by(segment, torch.where(real, mix(mix(input_ids) + place), 0))
