"""Rows of a whole prepared data set, read many at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sstoken_plugin.selection.samples import COLUMNS, IGNORE_INDEX, MASKS_OF_LABELS, labels_of, whole_row

if TYPE_CHECKING:
    from datasets import Dataset

# Rows that are read at once.
BLOCK = 100


def is_table(samples: Any) -> TypeGuard[Dataset]:
    """Tell whether a data set is one of the library `datasets`, whose columns can be read in blocks."""
    # Who trains with transformers alone need not have the library, and then has no data set of it.
    library = sys.modules.get("datasets")
    if library is None or not isinstance(samples, library.Dataset) or "input_ids" not in samples.column_names:
        return False
    # With a transform, somebody's own code makes the rows.
    return bool(samples.format["type"] != "custom")


def are_prepared(samples: Any) -> bool:
    """Tell whether rows are those that a model reads, `samples.as_batch`, or are made by a collator; by the first."""
    if is_table(samples) or not hasattr(samples, "__len__") or not len(samples):
        return True
    return isinstance(samples[0], Mapping) and "input_ids" in samples[0]


def rows_of(samples: Any) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
    """Yield every row of a data set.

    Args:
        samples: rows, see `samples.as_batch`: a sequence, a table or an iterable.

    Yields:
        The number of a first row; it and rows that follow as one batch, int64 [1, T], as if packed, with all their
        padding; and which of them each token is from, from 0, int64 [T].
    """
    if is_table(samples):
        for number, (batch, row) in enumerate(blocks(samples, (*COLUMNS, "seq_lengths"))):
            yield number * BLOCK, batch, row
    else:
        # By number, because not all that can be read so ends when it is gone through.
        rows = (samples[number] for number in range(len(samples))) if hasattr(samples, "__len__") else samples
        for number, row in enumerate(rows):
            batch = whole_row(row)
            yield number, batch, torch.zeros_like(batch["labels"][0])


def blocks(samples: Dataset, columns: tuple[str, ...], stride: int = 1) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
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
        if "position_ids" not in batch and of_samples is not None:
            batch["position_ids"] = _counted(of_samples.flatten().to_numpy(zero_copy_only=False))
        # Whatever positions a row has, with it a sample begins.
        ends = torch.from_numpy(np.cumsum(lengths[lengths > 0], dtype=np.int64))
        of_rows = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        row = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        masks = [batch.pop(name) for name in MASKS_OF_LABELS if name in batch]
        if "labels" not in batch:
            batch["labels"] = labels_of({name: column[None] for name, column in batch.items()})[0]
            for mask in masks:
                batch["labels"][mask == 0] = IGNORE_INDEX
        yield {name: column[None] for name, column in batch.items()} | {"cu_seq_lens_q": of_rows}, row


def _counted(lengths: Any) -> Tensor:
    """Count from 0 in stretches of these lengths, one behind another, int64 [their sum]."""
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return torch.from_numpy(np.arange(len(begins)) - begins)
