"""A look at the prepared data before training: what cannot be right in it, and what may not be meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from sstoken_plugin.samples import IGNORE_INDEX, BatchLayout, boundaries
from sstoken_plugin.turns import EndTokens, Turns

COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids")
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
        positions: rows whose `position_ids` were looked at: all that have any.
        several: those that hold several samples by their `position_ids`.
    """

    rows: int = 0
    labelled_padding: int = 0
    relabelled: int = 0
    ends: frozenset[int] = frozenset()
    positions: int = 0
    several: int = 0

    @classmethod
    def of(cls, samples: Any, tokens: EndTokens) -> Survey | None:
        """Look at a prepared data set, at rows all over it where it is large; None if it is of another kind.

        Args:
            samples: the rows, with lists `input_ids` and `labels`, and `attention_mask` and `position_ids` if they
                have them.
            tokens: what can end a turn.
        """
        if not isinstance(samples, Dataset) or not {"input_ids", "labels"} <= set(samples.column_names):
            return None
        found, ends, seen = cls(), set[int](), 0
        for block in _blocks(samples, [name for name in COLUMNS if name in samples.column_names], MOST_ROWS):
            batch, row = _as_one_row(block)
            layout = BatchLayout.of(batch)
            ends.update(layout.target[Turns.of(batch, layout, tokens).ends].unique().tolist())
            labelled, (real, _) = batch["labels"] != IGNORE_INDEX, boundaries(batch)
            found.rows += len(block["input_ids"])
            found.labelled_padding += _rows_with(labelled & ~real, row)
            found.relabelled += _rows_with(labelled & real & (batch["labels"] != batch["input_ids"]), row)
            seen += len(row)
            if seen > MOST_TOKENS:
                break
        found.ends = frozenset(ends)
        if "position_ids" in samples.column_names:
            # What is refused must not slip through.
            for block in _blocks(samples, ["labels", "position_ids"], len(samples)):
                found.positions += len(block["labels"])
                found.several += sum(map(_holds_several, block["labels"], block["position_ids"]))
        return found

    def refuse_several(self) -> None:
        """Refuse rows that hold several samples, for a training without packing.

        Raises:
            ValueError: there are such rows; one sentence with key and mend.
        """
        if self.several:
            raise ValueError(
                f"datasets: {self.several} of {self.positions} rows hold several samples by their position_ids, which "
                "see each other where Axolotl does not pack itself; give each sample a row of its own, and set "
                "sample_packing: true to pack them."
            )

    def warnings(self) -> list[str]:
        """Return what may not be meant, one sentence each."""
        found = []
        if self.labelled_padding:
            found.append(
                f"ssToken: {self.labelled_padding} of {self.rows} samples have labels on padding (attention_mask 0), "
                "which is never ranked; give padding the label -100 in `datasets:`."
            )
        if self.relabelled:
            found.append(
                f"ssToken: {self.relabelled} of {self.rows} samples have labels other than the tokens that they stand "
                "at; if somebody has shifted them, take that back in `datasets:`: the loss shifts them itself."
            )
        return found


def _blocks(samples: Dataset, columns: list[str], most: int) -> Iterator[dict[str, Any]]:
    """Yield columns of rows, arrays one a row: all rows, or about `most` of them in blocks all over the data set."""
    rows = samples.with_format("numpy", columns=columns)
    starts = range(0, len(samples), BLOCK)
    step = max(1, len(samples) // max(most, 1))
    for start in starts[::step]:
        yield rows[start : start + BLOCK]


def _as_one_row(block: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Put rows behind each other into a batch of one, as if packed; also return the row of each token."""
    lengths = [len(row) for row in block["input_ids"]]
    if "position_ids" not in block:
        block = {**block, "position_ids": [np.arange(length) for length in lengths]}
    batch = {
        name: torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in column]))[None]
        for name, column in block.items()
    }
    return batch, torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))


def _rows_with(marks: Tensor, row: Tensor) -> int:
    return len(row[marks[0]].unique())


def _holds_several(labels: np.ndarray, positions: np.ndarray) -> bool:
    """Tell whether a sample with labels begins behind another one; zeros without labels are padding."""
    segment = np.cumsum(np.asarray(positions) == 0)
    labelled = segment[np.asarray(labels) != IGNORE_INDEX]
    return bool(len(labelled)) and bool(labelled.max() > 1)
