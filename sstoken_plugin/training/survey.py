"""A look at the prepared data before training: what cannot be right in it, and what may not be meant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sstoken_plugin.engine.run import Names
from sstoken_plugin.selection.samples import (
    COLUMNS,
    IGNORE_INDEX,
    MASKS_OF_LABELS,
    BatchLayout,
    boundaries,
    labels_of,
    sum_by,
)
from sstoken_plugin.selection.turns import EndTokens, Turns

if TYPE_CHECKING:
    from datasets import Dataset

# Rows that are read at once, and what is looked at of all: a second or two of a start.
BLOCK = 100
MOST_ROWS, MOST_TOKENS = 20_000, 20_000_000


@dataclass
class Survey:
    """What was found.

    Attributes:
        rows: rows of the data set that were looked at.
        labelled_padding: those with labels where the attention mask is 0.
        relabelled: those with labels that are other tokens than the ones they stand at.
        ends: ids of the tokens that end a turn somewhere.
    """

    rows: int = 0
    labelled_padding: int = 0
    relabelled: int = 0
    ends: frozenset[int] = frozenset()

    @classmethod
    def of(cls, samples: Any, tokens: EndTokens) -> Survey | None:
        """Look at a prepared data set, at rows all over it where it is large; None if it is of another kind.

        Args:
            samples: the rows, see `as_batch`.
            tokens: what can end a turn.
        """
        if not _is_known(samples):
            return None
        found, ends = cls(), set[int]()
        for batch, row in _blocks(samples, (*COLUMNS, "seq_lengths"), _stride(samples)):
            layout = BatchLayout.of(batch)
            ends.update(layout.target[Turns.of(batch, layout, tokens).ends].unique().tolist())
            labelled = batch["labels"] != IGNORE_INDEX
            padding = batch["attention_mask"] == 0 if "attention_mask" in batch else torch.zeros_like(labelled)
            found.rows += int(row[-1]) + 1 if len(row) else 0
            found.labelled_padding += _rows_with(labelled & padding, row)
            found.relabelled += _rows_with(labelled & ~padding & (batch["labels"] != batch["input_ids"]), row)
        found.ends = frozenset(ends)
        return found

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
    if not _is_known(samples):
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


def _is_known(samples: Any) -> TypeGuard[Dataset]:
    # Who trains with transformers alone need not have the library, and then has no data set of it.
    library = sys.modules.get("datasets")
    return library is not None and isinstance(samples, library.Dataset) and "input_ids" in samples.column_names


def _padded_rows(samples: Dataset) -> int:
    if "attention_mask" not in samples.column_names:
        return 0
    blocks = _blocks(samples, ("labels", "attention_mask"))
    return sum(_rows_with(batch["attention_mask"] == 0, row) for batch, row in blocks if "attention_mask" in batch)


def _rows_of_several(samples: Dataset) -> int:
    """Count the rows in which a sample with response tokens stands behind another sample."""
    if "position_ids" not in samples.column_names:
        return 0
    count = 0
    for batch, row in _blocks(samples, ("labels", "attention_mask", "position_ids")):
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
    tokens = sum(len(row) for _, row in _blocks(some, ("labels",)))
    share = max(len(samples) / MOST_ROWS, tokens / max(len(some), 1) * len(samples) / MOST_TOKENS)
    return max(1, round(share))


def _blocks(samples: Dataset, columns: tuple[str, ...], stride: int = 1) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield rows behind each other as a batch of one, int64 [1, T], as if packed, and the row of each token, [T].

    Args:
        samples: the rows.
        columns: those that are there are read. Without `labels`, they are made as `as_batch` makes them.
        stride: of so many blocks one is looked at.
    """
    if "labels" not in samples.column_names:
        columns = ("input_ids", *MASKS_OF_LABELS, *columns)
    there = [name for name in dict.fromkeys(columns) if name in samples.column_names]
    tables = samples.with_format("arrow", columns=there)
    for start in range(0, len(samples), BLOCK * stride):
        table = tables[start : start + BLOCK]
        read = {name: table.column(name).combine_chunks() for name in there}
        # A column that not every row has says nothing of the others; the trainer stops at it.
        whole = {name: column for name, column in read.items() if not column.null_count}
        of_samples = whole.pop("seq_lengths", None)
        lengths = whole["labels" if "labels" in whole else "input_ids"].value_lengths().to_numpy(zero_copy_only=False)
        batch = {
            name: torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).astype(np.int64))
            for name, column in whole.items()
        }
        counted = _counted(lengths)
        positions = batch.get("position_ids", counted)
        if "position_ids" not in batch and of_samples is not None:
            positions = _counted(of_samples.flatten().to_numpy(zero_copy_only=False))
        # Whatever positions a row has, with it a sample begins.
        batch["position_ids"] = torch.where(counted == 0, 0, positions)
        row = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        masks = [batch.pop(name) for name in MASKS_OF_LABELS if name in batch]
        if "labels" not in batch:
            batch["labels"] = labels_of({name: column[None] for name, column in batch.items()})[0]
            for mask in masks:
                batch["labels"][mask == 0] = IGNORE_INDEX
        yield {name: column[None] for name, column in batch.items()}, row


def _counted(lengths: Any) -> Tensor:
    """Count from 0 in stretches of these lengths, one behind another, int64 [their sum]."""
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return torch.from_numpy(np.arange(len(begins)) - begins)


def _rows_with(marks: Tensor, row: Tensor) -> int:
    return len(row[marks[0]].unique())
