"""Rows of a data set as batches hold them, where a collator makes other tokens or labels of them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sstoken_plugin.history.blocks import KEY_BYTES
from sstoken_plugin.selection.samples import COLUMNS, as_batch, sample_keys

# Rows, all over the data set, by which it is told whether a collator takes them as they are.
_LOOKED_AT = 8


class Collated(Sequence[dict[str, list[int]]]):
    """The rows of a trainer's data set, each as its collator gives it to a model alone.

    Args:
        trainer: the trainer; its data set has a length.
    """

    def __init__(self, trainer: Any):
        self._rows = trainer.train_dataset
        self._collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        # Collators change the rows that they are given.
        row = copy.deepcopy(self._rows[index])
        with _draws_as_if_not_run():
            batch = self._collate([row])
        columns = {name: batch[name] for name in COLUMNS if isinstance(batch.get(name), Tensor)}
        return {name: column[0].tolist() for name, column in columns.items() if column.dim() == 2}


def makes_other_samples(trainer: Any) -> bool:
    """Tell whether a trainer's collator makes other tokens or labels of rows than those have, by a few of them.

    Args:
        trainer: a trainer of transformers' own, which takes any collator.
    """
    rows = trainer.train_dataset
    try:
        collated = Collated(trainer)
        places = range(0, len(rows), max(1, len(rows) // _LOOKED_AT))
        return any(_keys(rows[place]) != _keys(collated[place]) for place in places)
    except Exception:
        # One that takes no row alone is asked for no more, and rows are read as they are.
        return False


def _keys(row: Any) -> list[bytes] | None:
    """Return what tells samples apart, None of a row that has none until it is collated."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        return None
    return sample_keys(as_batch(row), KEY_BYTES)[0]


@contextmanager
def _draws_as_if_not_run() -> Iterator[None]:
    """Give back the random numbers that are drawn in the block: training must draw the same as without it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
