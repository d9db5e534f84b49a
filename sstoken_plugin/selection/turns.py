"""Which turn of its sample a response token belongs to, and which tokens end a turn.

A *run* is an unbroken stretch of response tokens. A turn is one run, or several with parts between them that are not
trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sstoken_plugin.selection.samples import BatchLayout, sum_by


@dataclass(frozen=True)
class EndTokens:
    """Tokens that can end a turn.

    Attributes:
        ids: their ids.
        blank: ids of white space, which some templates put behind the end of a turn.
        in_data: those that end a turn in the data; None if nobody has looked.
    """

    ids: Collection[int] = ()
    blank: Collection[int] = ()
    in_data: Collection[int] | None = None


@dataclass(frozen=True)
class Turns:
    """The turns of a batch.

    R is the number of response tokens of the layout.

    Attributes:
        number: int64 [R], number of the token's turn in its sample, from 0.
        ends: bool [R], the tokens that end a turn: the last one of a run, white space aside, if it is an end token. One
            inside of an answer, which speaks of it, ends nothing.
    """

    number: Tensor
    ends: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], layout: BatchLayout, tokens: EndTokens) -> Turns:
        """Find the turns of a batch.

        Where an end token stands between two runs, labelled or not, the second one begins a turn. A sample that has no
        end token at all shows nothing of the kind: each of its runs counts as a turn.

        Args:
            batch: see `BatchLayout.of`.
            layout: its layout.
            tokens: what can end a turn.
        """
        position, sample, target = layout.position, layout.sample, layout.target
        begins_run = torch.ones_like(position, dtype=torch.bool)
        begins_run[1:] = (position[1:] != position[:-1] + 1) | (sample[1:] != sample[:-1])
        run = torch.cumsum(begins_run, 0) - 1
        index = torch.arange(len(position), device=position.device)
        can_end = _is_in(target, tokens.ids)
        blank = _is_in(target, tokens.blank) & ~can_end
        last = torch.full_like(index, -1).scatter_reduce_(0, run, torch.where(blank, -1, index), "amax")
        ends = (index == last[run]) & can_end

        marks = (_is_in(batch["input_ids"].flatten(), tokens.ids) & layout.real.flatten()).long()
        passed = torch.cumsum(marks, 0)
        shows_none = sum_by(layout.segment, marks)[layout.segment[position]] == 0
        ended = sum_by(run, ends.long())[run.sub(1).clamp(min=0)] > 0
        between = torch.zeros_like(ended)
        between[1:] = passed[position[1:] - 1] > passed[position[:-1]]
        turn = torch.cumsum(begins_run & (ended | between | shows_none), 0)
        return cls(turn - turn[layout.first][sample], ends)


def _is_in(values: Tensor, tokens: Collection[int]) -> Tensor:
    return torch.isin(values, values.new_tensor(list(tokens)))
