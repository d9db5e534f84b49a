"""A look at the prepared data before training: what cannot be right in it, and what may not be meant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sstoken_plugin.engine.run import Names
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.rows import blocks, is_table
from sstoken_plugin.selection.samples import COLUMNS, IGNORE_INDEX, BatchLayout, boundaries, sum_by
from sstoken_plugin.selection.scores import kept_per_sample
from sstoken_plugin.selection.selectors import selector_of
from sstoken_plugin.selection.turns import EndTokens, Turns

if TYPE_CHECKING:
    from datasets import Dataset

# What is looked at of a large data set: a second or two of a start.
MOST_ROWS, MOST_TOKENS = 20_000, 20_000_000


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass
class Survey:
    """What was found.

    Attributes:
        rows: rows of the data set that were looked at.
        labelled_padding: those with labels where the attention mask is 0.
        relabelled: those with labels that are other tokens than the ones they stand at.
        ends: ids of the tokens that end a turn somewhere.
        tokens: tokens, padding left out.
        lengths: int64 [N], response tokens of each sample that has any.
        turn_ends: int64 [N], how many of them end a turn.
        scale: rows of the data set for each that was looked at.
    """

    rows: int = 0
    labelled_padding: int = 0
    relabelled: int = 0
    ends: frozenset[int] = frozenset()
    tokens: int = 0
    lengths: Tensor = field(default_factory=_none)
    turn_ends: Tensor = field(default_factory=_none)
    scale: float = 1.0

    @classmethod
    def of(cls, samples: Any, tokens: EndTokens) -> Survey | None:
        """Look at a prepared data set, at rows all over it where it is large; None if it is of another kind.

        Args:
            samples: the rows, see `as_batch`.
            tokens: what can end a turn.
        """
        if not is_table(samples):
            return None
        found, ends = cls(), set[int]()
        lengths, turn_ends = [_none()], [_none()]
        stride = _stride(samples)
        for batch, row in blocks(samples, (*COLUMNS, "seq_lengths"), stride):
            layout = BatchLayout.of(batch)
            ending = Turns.of(batch, layout, tokens).ends
            ends.update(layout.target[ending].unique().tolist())
            lengths.append(layout.lengths)
            turn_ends.append(layout.count(ending))
            found.tokens += int(layout.real.sum())
            labelled = batch["labels"] != IGNORE_INDEX
            padding = batch["attention_mask"] == 0 if "attention_mask" in batch else torch.zeros_like(labelled)
            found.rows += int(row[-1]) + 1 if len(row) else 0
            found.labelled_padding += _rows_with(labelled & padding, row)
            found.relabelled += _rows_with(labelled & ~padding & (batch["labels"] != batch["input_ids"]), row)
        found.ends = frozenset(ends)
        found.lengths, found.turn_ends = torch.cat(lengths), torch.cat(turn_ends)
        found.scale = len(samples) / max(found.rows, 1) if stride > 1 else 1.0
        return found

    def kept(self, config: SSTokenConfig) -> Tensor | None:
        """Return how many tokens of each sample are trained on after the warm-up, int64 [N].

        None where that does not follow from the labels alone.
        """
        row = selector_of(config.selector)
        if row.is_threshold:
            return None
        if row.keeps_all:
            return self.lengths
        return kept_per_sample(self.lengths, config.ratio, self.turn_ends if config.keep_eos else None)

    def kept_share(self, config: SSTokenConfig) -> float | None:
        """Return the share of the response tokens, 0 to 1, that the settings keep; None where that is not known."""
        kept, response = self.kept(config), int(self.lengths.sum())
        return None if kept is None or not response else int(kept.sum()) / response

    def warnings(self, names: Names = Names()) -> list[str]:
        """Return what may not be meant, one sentence each.

        Args:
            names: what the trainer's users call things.
        """
        found = []
        if self.labelled_padding:
            found.append(
                f"ssToken: {self.labelled_padding} of {self.rows} samples have labels on padding (attention_mask 0), "
                f"which is never ranked; give padding the label -100 in `{names.data}:`."
            )
        if self.relabelled:
            found.append(
                f"ssToken: {self.relabelled} of {self.rows} samples have labels that differ from the tokens at "
                f"their positions; if they were shifted, undo that in `{names.data}:`: the loss shifts them itself."
            )
        return found


def refuse_rows(samples: Any, *, packed: bool, names: Names = Names()) -> None:
    """Refuse rows of a prepared data set that the trainer's batches would not tell apart; every row is looked at.

    Args:
        samples: see `Survey.of`.
        packed: whether the training packs them.
        names: what the trainer's users call things.

    Raises:
        ValueError: there are such rows; one sentence with their number, the key and the way out.
    """
    if not is_table(samples):
        return
    if packed and (padded := _padded_rows(samples)):
        raise ValueError(
            f"{names.packing}: {padded} of {len(samples)} rows have padding of their own (attention_mask 0), which "
            f"{names.trainer} reads as text where it packs; take it out of the rows, or set {names.packing}: false."
        )
    if not packed and (several := _rows_of_several(samples)):
        raise ValueError(
            f"{names.data}: {several} of {len(samples)} rows hold several samples by their position_ids, which see "
            f"each other where {names.trainer} does not pack itself; give each sample a row of its own"
            + (f", and set {names.packing}: true to pack them." if names.packing else ".")
        )


def _padded_rows(samples: Dataset) -> int:
    if "attention_mask" not in samples.column_names:
        return 0
    found = blocks(samples, ("labels", "attention_mask"))
    return sum(_rows_with(batch["attention_mask"] == 0, row) for batch, row in found if "attention_mask" in batch)


def _rows_of_several(samples: Dataset) -> int:
    """Count the rows in which a sample with response tokens stands behind another sample."""
    if "position_ids" not in samples.column_names:
        return 0
    count = 0
    for batch, row in blocks(samples, ("labels", "attention_mask", "position_ids")):
        real, starts = boundaries(batch)
        of_row = sum_by(row, starts[0].long())
        # Of the samples of its own row, the number of the one that a token stands in, from 1.
        number = torch.cumsum(starts[0], 0) - (torch.cumsum(of_row, 0) - of_row)[row]
        response = (batch["labels"] != IGNORE_INDEX) & real & ~starts
        count += _rows_with(response & (number > 1), row)
    return count


def _stride(samples: Dataset) -> int:
    """Return of how many blocks one is looked at."""
    some = samples.select(range(0, len(samples), max(1, len(samples) // 50)))
    tokens = sum(len(row) for _, row in blocks(some, ("labels",)))
    share = max(len(samples) / MOST_ROWS, tokens / max(len(some), 1) * len(samples) / MOST_TOKENS)
    return max(1, round(share))


def _rows_with(marks: Tensor, row: Tensor) -> int:
    return len(row[marks[0]].unique())
