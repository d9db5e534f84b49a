"""Which part of a sample's text goes onto the page: all of it, unless it is very long; then what is telling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

# Tokens of a sample whose text goes onto the page, which folds what is more than a screen.
MAX_TOKENS = 8192
# Of those, what the prompts may take even where the response would take all: what was asked stays readable.
MIN_PROMPT_TOKENS = 2048


@dataclass(frozen=True)
class Run:
    """Tokens start to stop of a sample, of one kind.

    Attributes:
        response: whether they are response tokens.
        number: 1 for the first run of its kind in the sample, 2 for the second.
        start: place of the first token in the sample.
        stop: place behind the last token.
        shown: whether their text goes onto the page.
    """

    response: bool
    number: int
    start: int
    stop: int
    shown: bool = True

    def __len__(self) -> int:
        return self.stop - self.start


def window(response: Sequence[bool]) -> list[Run]:
    """Choose what goes onto the page of a sample.

    Long prompts lose their middle first, then responses their end, so the response tokens shown are always the
    first ones of the sample.

    Args:
        response: one entry a token.

    Returns:
        Runs that cover the sample in order.
    """
    runs = _runs(response)
    if len(response) <= MAX_TOKENS:
        return runs
    prompts = [len(run) for run in runs if not run.response]
    cap = _cap(prompts, max(MAX_TOKENS - (len(response) - sum(prompts)), MIN_PROMPT_TOKENS))
    pieces = [piece for run in runs for piece in ([run] if run.response else _without_middle(run, cap))]
    found: list[Run] = []
    left = MAX_TOKENS
    for piece in pieces:
        if not piece.shown:
            found.append(piece)
            continue
        fits = min(len(piece), left)
        left -= fits
        head, tail = _split(piece, piece.start + fits)
        found += [head] if fits else []
        if len(tail):
            # All that follows, of either kind, is one cut.
            found.append(Run(tail.response, tail.number, tail.start, len(response), shown=False))
            break
    return found


def _runs(response: Sequence[bool]) -> list[Run]:
    runs: list[Run] = []
    seen = {True: 0, False: 0}
    start = 0
    for kind, group in groupby(map(bool, response)):
        stop = start + sum(1 for _ in group)
        seen[kind] += 1
        runs.append(Run(kind, seen[kind], start, stop))
        start = stop
    return runs


def _cap(lengths: Sequence[int], budget: int) -> int:
    """Return the largest cap on each length, at least 2, with which they add up to no more than the budget."""
    cap, left = 2, list(lengths)
    while left:
        share = budget // len(left)
        longer = [length for length in left if length > share]
        if len(longer) == len(left):
            return max(cap, share)
        budget -= sum(left) - sum(longer)
        left = longer
    return max(lengths, default=cap)


def _without_middle(run: Run, cap: int) -> list[Run]:
    if len(run) <= cap:
        return [run]
    head, rest = _split(run, run.start + cap // 2)
    middle, tail = _split(rest, run.stop - (cap - cap // 2))
    return [head, Run(middle.response, middle.number, middle.start, middle.stop, shown=False), tail]


def _split(run: Run, place: int) -> tuple[Run, Run]:
    return Run(run.response, run.number, run.start, place), Run(run.response, run.number, place, run.stop)
