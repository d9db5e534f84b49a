"""What kind of token each response token is: answer, reasoning, end of turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.selection.turns import EndTokens, Turns

KINDS = ("answer", "reasoning", "end_of_turn")
ANSWER, REASONING, END = range(3)

_OPEN, _CLOSE = "<think>", "</think>"
_SPAN = re.compile(rf"{_OPEN}.*?(?:{_CLOSE}|\Z)", re.DOTALL)
# Some templates open the reasoning in the prompt; white space as vocabularies write it may follow.
_OPENED = re.compile(rf"{_OPEN}[\sĠĊĉč▁]*$")
# Tokens before a response in which that would stand.
_BEFORE = 16


def kinds(sample: Mapping[str, Tensor], tokenizer: Any, ends: EndTokens) -> Tensor:
    """Return the kind of each response token of a sample, int64 [R], as an index of `KINDS`.

    Reasoning is what stands inside of `<think>...</think>`, the marks with it, also where the prompt holds the first
    mark or the response ends without the second. A token that ends a turn is an end of turn wherever it stands.

    Args:
        sample: see `samples.as_batch`.
        tokenizer: of transformers.
        ends: what can end a turn.
    """
    layout = BatchLayout.of(sample)
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(sample["input_ids"][0].tolist())]
    marked = torch.tensor(is_reasoning(pieces, layout.position.tolist()), dtype=torch.bool)
    found = torch.where(marked, REASONING, ANSWER)
    return torch.where(Turns.of(sample, layout, ends).ends, END, found)


def is_reasoning(pieces: Sequence[str], response: Sequence[int]) -> list[bool]:
    """Tell of each response token whether it is reasoning.

    Args:
        pieces: of the whole sample, as the vocabulary has them.
        response: places of the response tokens, ascending.
    """
    found: list[bool] = []
    for _, group in groupby(enumerate(response), lambda pair: pair[1] - pair[0]):
        run = [place for _, place in group]
        text = "".join(pieces[place] for place in run)
        spans = _spans(text, is_open=bool(_OPENED.search("".join(pieces[max(0, run[0] - _BEFORE) : run[0]]))))
        start = 0
        for place in run:
            stop = start + len(pieces[place])
            found.append(any(start < end and stop > begin for begin, end in spans))
            start = stop
    return found


def _spans(text: str, *, is_open: bool) -> list[tuple[int, int]]:
    """Return where reasoning begins and ends in the text of a response."""
    begin = 0
    spans = []
    if is_open:
        place = text.find(_CLOSE)
        begin = len(text) if place < 0 else place + len(_CLOSE)
        spans.append((0, begin))
    return spans + [match.span() for match in _SPAN.finditer(text, begin)]
