"""Which positions of a batch belong to which sample, and which are prompt and which response.

Terms: a batch has B rows of S positions. A *real* token is one that is no padding: its attention mask is not 0. A
*sample* is one training example: the real tokens of a row, or of one of the samples in a packed row. Its *response* is
what is labelled but for its first token, which nothing of it predicts, and its *prompt* what is not labelled. A *flat*
position is `row * S + column`.

Whatever reads samples, for training, inspection or a cache, reads them here, whichever trainer has made them. Samples
of a packed row are told apart in any of these ways:

    position_ids                    0 starts a sample                 Axolotl, TRL, DataCollatorWithFlattening
    attention_mask [B, S]           1, 1, 2, 2, 2, 0: their numbers   Axolotl; rows of LLaMA-Factory's neat_packing
    attention_mask [B, 1, S, S]     who sees whom                     batches of LLaMA-Factory's neat_packing
    cu_seq_lens_q [N + 1]           where each of them begins         padding-free batches for flash attention
    seq_lengths, of a row           how long each of them is          rows that TRL has packed
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100
# What of a row of a data set a model reads, or tells where its samples are.
COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids")
# Of rows without labels, what marks the tokens that are trained on: TRL's columns.
MASKS_OF_LABELS = ("completion_mask", "assistant_masks")


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
        has_prompt: bool [N], whether the sample has any prompt token that a response token sees.
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
            batch: `input_ids`, int64 [B, S], and `labels` likewise, see `labels_of`; `attention_mask` where there is
                padding (on either side), and what tells the samples of packed rows apart, see the top of this file.
            as_plain: take in every token that plain training learns from: also one that starts a sample, which is
                predicted from another sample or from padding, and labelled padding. These are never ranked.
        """
        input_ids, labels = batch["input_ids"], labels_of(batch)
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
        # What stands behind the last response token is seen by none.
        last = torch.full_like(segment, -1).scatter_reduce_(0, segment[position], position, "amax")
        is_seen = torch.arange(len(segment), device=segment.device) < last[segment]
        prompts = sum_by(segment, (prompt.flatten() & is_seen).long())
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
    """Turn a row of a prepared data set, lists `input_ids`, `labels`, ..., into a batch of one row.

    Padding that the row has at its ends is left out, and so are positions that count from 0 as those of a model do.

    Args:
        sample: the row. Without `labels`, its tokens are trained on that its `completion_mask` and `assistant_masks`
            name, or all of them. `seq_lengths` becomes `position_ids`.
        device: of the tensors.

    Raises:
        ValueError: its `seq_lengths` are not those of its tokens.
    """
    return _trimmed(whole_row(sample, device))


def whole_row(sample: Mapping[str, Any], device: Any = None) -> dict[str, Tensor]:
    """Turn a row of a prepared data set into a batch of one row, as `as_batch` does, but with all that the row has."""
    columns = {key: sample[key] for key in COLUMNS if sample.get(key) is not None}
    if "position_ids" not in columns and sample.get("seq_lengths") is not None:
        columns["position_ids"] = _counted(sample["seq_lengths"], len(columns["input_ids"]))
    batch = {key: _tensor(column, device)[None] for key, column in columns.items()}
    if "labels" not in batch:
        batch["labels"] = labels_of(batch)
        for key in MASKS_OF_LABELS:
            if sample.get(key) is not None:
                batch["labels"][_tensor(sample[key], device)[None] == 0] = IGNORE_INDEX
    return batch


def _tensor(column: Any, device: Any) -> Tensor:
    # torch warns where a tensor is made of one.
    return column.to(device, copy=True) if isinstance(column, Tensor) else torch.tensor(column, device=device)


def samples_in(sample: Mapping[str, Any], device: Any = None) -> list[dict[str, Tensor]]:
    """Return the samples of a row, each alone in a batch of one: more than one where the row is packed.

    Args:
        sample: see `as_batch`.
        device: of the tensors.
    """
    batch = as_batch(sample, device)
    mask = batch.get("attention_mask")
    # Told without a look at every token where it can be: data sets have millions of rows.
    if not may_be_packed(batch) and (mask is None or not bool((mask > 1).any())):
        return [batch]
    parts = samples_of(batch)
    return parts if len(parts) > 1 else [batch]


def samples_of(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the samples of a batch in their order, each alone in a batch of one, without padding at its ends.

    Args:
        batch: `COLUMNS`, each [B, S].
    """
    marks = boundaries(batch)[1].nonzero().tolist()
    if not marks:
        return []
    width = batch["input_ids"].shape[1]
    parts = []
    for (row, begin), (next_row, next_begin) in zip(marks, [*marks[1:], [-1, 0]], strict=True):
        end = next_begin if next_row == row else width
        part = {key: column[row : row + 1, begin:end] for key, column in batch.items()}
        if "attention_mask" in part:
            # Alone, a sample has no number.
            part["attention_mask"] = (part["attention_mask"] != 0).long()
        parts.append(_trimmed(part))
    return parts


def can_be_cut(batch: Mapping[str, Tensor]) -> bool:
    """Tell whether parts of a batch can be run without the others: it holds nothing but columns of its tokens."""
    return batch.keys() <= {*COLUMNS} and all(column.shape == batch["input_ids"].shape for column in batch.values())


def excerpt(batch: Mapping[str, Tensor], layout: BatchLayout, tokens: int) -> Mapping[str, Tensor]:
    """Return a part of a row where a response begins, after a prompt if any sample has one; no padding at its ends.

    Args:
        batch: see `BatchLayout.of`. It is returned whole where it cannot be cut.
        layout: its layout, with response tokens.
        tokens: at most so many before the response, and of it.
    """
    if not can_be_cut(batch):
        return batch
    begin = layout.position[layout.first[int(layout.has_prompt.long().argmax())]]
    row, place = divmod(int(begin), layout.shape[1])
    part = slice(max(place - tokens, 0), place + tokens)
    return _trimmed({name: column[row : row + 1, part] for name, column in batch.items()})


def _counted(lengths: Sequence[int], tokens: int) -> list[int]:
    """Return the position of each token of a row in its sample."""
    if sum(lengths) != tokens:
        raise ValueError(
            f"seq_lengths: a row has {tokens} tokens and names samples of {sum(lengths)} tokens together; prepare the "
            "data set anew."
        )
    return [position for length in lengths for position in range(length)]


def _trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out padding at the ends of a batch of one row, and positions that say no more than the order does."""
    real, _ = boundaries(batch)
    (places,) = real[0].nonzero(as_tuple=True)
    if len(places):
        batch = {key: column[:, places[0] : places[-1] + 1] for key, column in batch.items()}
    positions = batch.get("position_ids")
    if positions is not None and torch.equal(positions[0], torch.arange(positions.shape[1], device=positions.device)):
        del batch["position_ids"]
    return batch


def labels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the labels of a batch, int64 [B, S]; where it has none, all its tokens but padding are trained on.

    Args:
        batch: see `BatchLayout.of`.
    """
    labels = batch.get("labels")
    return torch.where(boundaries(batch)[0], batch["input_ids"], IGNORE_INDEX) if labels is None else labels


class KeyedSample(NamedTuple):
    """A sample that has response tokens, as a cache sees it.

    Attributes:
        begin: flat position of its first token.
        key: hash of all that its losses depend on.
        responses: number of its response tokens.
        tokens: number of its real tokens.
    """

    begin: int
    key: bytes
    responses: int
    tokens: int


def sample_keys(batch: Mapping[str, Tensor], size: int) -> tuple[list[bytes], list[int]]:
    """Return the keys of the samples of a batch, and how many response tokens each has; see `keyed_samples`."""
    found = list(keyed_samples(batch, size))
    return [sample.key for sample in found], [sample.responses for sample in found]


def keyed_samples(batch: Mapping[str, Tensor], size: int) -> Iterator[KeyedSample]:
    """Yield every sample that has response tokens, in their order.

    A sample has the same key in every batch, padded or packed, and alone.

    Args:
        batch: see `BatchLayout.of`.
        size: bytes of a key.
    """
    real, starts = (marks.flatten() for marks in boundaries(batch))
    labels = labels_of(batch).flatten()
    response = (labels != IGNORE_INDEX) & real & ~starts
    # One transfer from the device for all samples.
    columns = [batch["input_ids"].flatten(), labels, response.long(), real.long(), starts.long()]
    if (positions := _positions(batch)) is not None:
        columns.append(positions.flatten())
    table = torch.stack(columns).cpu().numpy()
    begins = np.flatnonzero(table[4])
    if not len(begins):
        return
    # What stands before the first start is padding.
    table, begins, before = table[:, begins[0] :], begins - begins[0], begins[0]
    tokens, targets = table[0], table[1]
    asked, kept = table[2].astype(bool), table[3].astype(bool)
    responses, lengths = (np.add.reduceat(marks, begins, dtype=np.int64) for marks in (asked, kept))
    ends = np.cumsum(lengths)
    read, is_response = tokens[kept].astype("<u4"), asked[kept]
    has_own_labels = np.logical_or.reduceat(asked & (targets != tokens), begins)
    last = np.maximum.reduceat(np.where(kept, np.arange(len(kept)), -1), begins)
    has_gaps = last - begins + 1 != lengths
    counted = np.arange(len(read)) - np.repeat(ends - lengths, lengths)
    own_positions = table[5][kept] if len(table) == 6 else counted
    has_own_positions = np.zeros(len(begins), bool)
    has_own_positions[np.repeat(np.arange(len(begins)), lengths)[own_positions != counted]] = True
    for number in np.flatnonzero(responses).tolist():
        own = slice(ends[number] - lengths[number], ends[number])
        content = hashlib.blake2b(read[own].tobytes(), digest_size=size)
        content.update(np.packbits(is_response[own]).tobytes())
        if has_own_labels[number] or has_gaps[number]:
            span = slice(begins[number], last[number] + 1)
            if has_own_labels[number]:
                # Labels of somebody's own, other tokens than those that are read.
                content.update(b"labels" + targets[span][asked[span]].astype("<u4").tobytes())
            if has_gaps[number]:
                # Tokens in the midst that are not attended to.
                content.update(b"mask" + np.packbits(kept[span]).tobytes())
        if has_own_positions[number]:
            content.update(b"positions" + own_positions[own].astype("<u4").tobytes())
        begin = int(before + begins[number])
        yield KeyedSample(begin, content.digest(), int(responses[number]), int(lengths[number]))


def boundaries(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return where real tokens are and where samples start, each bool [B, S].

    Args:
        batch: see `BatchLayout.of`; of `input_ids` and `labels` one is enough.

    Raises:
        ValueError: `position_ids` are not one a token.
    """
    mask, positions = batch.get("attention_mask"), _positions(batch)
    if mask is not None and mask.dim() == 4:
        return _seen(mask, len(_tokens(batch)))
    real = torch.ones_like(_tokens(batch), dtype=torch.bool) if mask is None else mask != 0
    # Where something starts: a sample, or padding that stands before one, also inside of a row.
    marks = torch.zeros_like(real)
    if positions is not None:
        zero = positions == 0
        # Padding counts 0, 0, 0 where nothing else marks it. A sample of one token has no response either.
        real = real & ~(zero & functional.pad(zero[:, 1:], (0, 1), value=True))
        marks |= zero
        if mask is None:
            # As transformers reads them, for models that count from another place than 0.
            marks[:, 1:] |= positions[:, 1:] < positions[:, :-1]
    if mask is not None:
        marks |= _other_number(mask)
    if (begins := batch.get("cu_seq_lens_q")) is not None:
        marks.view(-1)[begins[:-1].long()] = True
    passed = torch.cumsum(real, 1)
    before = torch.where(marks, passed - real.long(), 0).cummax(1).values
    return real, real & (passed == before + 1)


def may_be_packed(batch: Mapping[str, Tensor]) -> bool:
    """Tell whether a row of a batch can hold several samples; `boundaries` tells whether one does."""
    mask = batch.get("attention_mask")
    return not batch.keys().isdisjoint(("position_ids", "cu_seq_lens_q")) or (mask is not None and mask.dim() == 4)


def _tokens(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["input_ids"] if "input_ids" in batch else batch["labels"]


def _positions(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return the position of each token, [B, S]; where a token has several, as for images, the first, that in text."""
    positions = batch.get("position_ids")
    if positions is None:
        return None
    positions = positions[0] if positions.dim() == 3 else positions
    tokens = _tokens(batch)
    if positions.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"position_ids: a batch has {positions.shape[1]} of them a row and {tokens.shape[1]} tokens; pad both "
            "alike, or leave position_ids out."
        )
    # Given once for all rows, as some do.
    return positions.expand_as(tokens)


def _seen(mask: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Read a mask over pairs of tokens, [B, 1, S, S]: True or 0.0 where one is seen, of whole numbers those but 0.

    A token that sees nobody and is seen by nobody is padding: as a sample of its own it would have no response.
    """
    pairs = mask[:, 0] == 0 if mask.is_floating_point() else mask[:, 0] != 0
    earlier = pairs.tril(-1)
    sees = earlier.any(2)
    real = pairs.diagonal(dim1=1, dim2=2) & (sees | earlier.any(1))
    return real.expand(rows, -1), (real & ~sees).expand(rows, -1)


def _other_number(mask: Tensor) -> Tensor:
    """Return where a mask of sample numbers, [B, S], has another number than at the token before, bool [B, S]."""
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last = torch.where(mask != 0, place, 0).cummax(1).values
    numbers = mask.gather(1, last)
    return functional.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0)) & (mask != 0)


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
