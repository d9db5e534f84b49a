"""Which tokens are kept over all the data: counts by kind of token, token, place, turn, and loss of the history."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.base.attempt import attempt
from sstoken_plugin.base.numbers import counted
from sstoken_plugin.engine.step import ScoredStep
from sstoken_plugin.report.content import KINDS, Breakdown
from sstoken_plugin.report.token_text import REPLACEMENT, LoneTokens

PLACES, TURNS = 10, 8
# Tenths of a power of two, from a loss of 2^-20 to one of 2^6: fine enough to be merged into deciles.
LOSS_BINS, LOSS_FLOOR, PER_OCTAVE = 260, -20, 10
PARTS = (
    "words", "names", "numbers", "punctuation", "whitespace", "code", "end of turn", "template tokens",
    "parts of characters",
)  # fmt: skip
FENCE = "```"
# Where a token stands, which its text alone does not tell.
INSIDE, START, CODE, END = range(4)
CONTEXTS = 4
# Pieces of a vocabulary behind which a capital is no sign of a name: ends of sentences, lines, quotes, marks of items.
_BREAK = re.compile(r"""[.!?:;"'()\[\]*#>|\-\d`][\sĠ▁]*$|[\nĊ]|<0x0A>""")
# Of the table by text.
MOST_TOKENS = 400

# Label, tokens seen, tokens kept.
Row = tuple[str, int, int]


class KeptCounts:
    """Counts seen and kept tokens over the steps in which one rule ranked them; a new rule starts them anew.

    A step adds in O(tokens) on its device, and nothing waits for the device.

    Args:
        tokenizer: of transformers.
        vocabulary: V, the size of the model's vocabulary.

    Attributes:
        counts: int64 [2, C], tokens seen and tokens kept on this rank.
        failed: whether counting has failed, so that there are no tables.
    """

    def __init__(self, tokenizer: Any, vocabulary: int):
        self.rule: str | None = None
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        pieces = tokenizer.get_vocab().items()
        self._fences = torch.tensor([token for text, token in pieces if FENCE in text])
        self._breaks = torch.tensor([token for text, token in pieces if _BREAK.search(str(text))])
        # Tokens in each context, and so on.
        self._sizes = {"token": CONTEXTS * vocabulary, "place": PLACES, "turn": TURNS, "loss": LOSS_BINS}
        self.failed = False
        self.counts = torch.zeros(2, sum(self._sizes.values()), dtype=torch.int64)

    def clear(self) -> None:
        """Begin at zero."""
        self.rule = None
        self.counts.zero_()

    def add(self, step: ScoredStep) -> None:
        """Count the tokens of a scored step. A failure is said once, and costs the tables, not the step."""
        if self.failed:
            return
        counted = attempt("the page has no tables, because tokens were not counted", lambda: self._add(step))
        self.failed = counted is None

    def _add(self, step: ScoredStep) -> bool:
        if step.phase.rule != self.rule:
            self.rule = step.phase.rule
            self.counts.zero_()
        layout, kept = step.layout, step.kept
        self.counts, self._fences, self._breaks = (
            tensor.to(kept.device) for tensor in (self.counts, self._fences, self._breaks)
        )
        groups = {
            "token": layout.target + self._vocabulary * self._context(step),
            "place": PLACES * layout.index_in_sample // layout.lengths[layout.sample],
            "turn": step.turns.number.clamp(max=TURNS - 1),
        }
        if step.scores.history is not None:
            groups["loss"] = _loss_bin(step.scores.history)
        one, offset = torch.ones_like(layout.position), 0
        for name, size in self._sizes.items():
            if name in groups:
                self.counts[0].index_add_(0, groups[name] + offset, one)
                self.counts[1].index_add_(0, groups[name] + offset, kept.long())
            offset += size
        return True

    def restore(self, rule: str | None, counts: Tensor) -> None:
        """Go on from `counts` of an earlier run.

        Raises:
            ValueError: they are of another vocabulary, or none.
        """
        if counts.shape != self.counts.shape or counts.dtype != self.counts.dtype:
            raise ValueError("they are of another vocabulary, or of a version that counted other things")
        if not bool((counts[1] >= 0).all() and (counts[1] <= counts[0]).all()):
            raise ValueError("more tokens kept than seen")
        self.rule, self.counts = rule, counts

    def tables(self, counts: Tensor) -> list[Breakdown]:
        """Return tables of what was kept.

        Args:
            counts: of all ranks together, int64 [2, C] on the CPU.
        """
        if self.failed:
            return []
        pieces = dict(zip(self._sizes, counts.split(list(self._sizes.values()), dim=1), strict=True))
        tokens = pieces["token"].view(2, CONTEXTS, self._vocabulary)
        total, measured = (int(pieces[name][0].sum()) for name in ("place", "loss"))
        # By which nothing ranks is measured on samples.
        sampled = "" if measured == total else f" Measured on {counted(measured, 'token')}, a sample of those."
        found = [
            (
                KINDS,
                "By the text of each token: names are words with a capital that do not begin a sentence (in German, "
                "nouns too); code is what stands between ``` and ```; template tokens are the tokenizer's special ones "
                "that end no turn; parts of characters are what letters and emoji of several tokens are made of.",
                self._parts(tokens),
            ),
            (
                "By position in the response",
                "Each response is cut into ten equal parts.",
                _rows([f"tenth {place + 1}" for place in range(PLACES)], pieces["place"]),
            ),
            (
                "By turn",
                "The turns of a conversation that are trained on.",
                _rows([*(f"turn {turn}" for turn in range(1, TURNS)), f"turn {TURNS} and later"], pieces["turn"]),
            ),
            (
                "By decile of the history's loss",
                f"In nats, from the tokens that the history knows best to those that it knows least.{sampled}",
                _deciles(pieces["loss"]),
            ),
            ("By text", f"The most frequent tokens, {MOST_TOKENS} at most.", self._texts(tokens.sum(1))),
        ]
        scope = f"{counted(total, 'token')}, ranked by {self.rule}."
        return [Breakdown(title, f"{note} {scope}", rows, self.rule or "") for title, note, rows in found if rows]

    def _context(self, step: ScoredStep) -> Tensor:
        """Return where each token stands, int64 [R]: `INSIDE`, `START`, ..."""
        layout, turns = step.layout, step.turns
        fence = torch.isin(layout.target, self._fences)
        in_code = (_count_in_sample(fence, step) % 2 == 1) | fence
        begins = layout.index_in_sample == 0
        begins[1:] |= turns.number[1:] != turns.number[:-1]
        begins[1:] |= torch.isin(layout.target[:-1], self._breaks)
        context = torch.where(begins, START, INSIDE)
        return torch.where(turns.ends, END, torch.where(in_code, CODE, context))

    def _parts(self, tokens: Tensor) -> list[Row]:
        special, alone = set(self._tokenizer.all_special_ids), LoneTokens(self._tokenizer)
        totals = {name: [0, 0] for name in PARTS}
        seen, kept = tokens
        for context, token in (seen > 0).nonzero().tolist():
            if context == END:
                part = "end of turn"
            elif token in special:
                part = "template tokens"
            else:
                part = "code" if context == CODE else part_of(alone.decoded(token), begins=context == START)
            totals[part][0] += int(seen[context, token])
            totals[part][1] += int(kept[context, token])
        return [(name, counts[0], counts[1]) for name, counts in totals.items() if counts[0]]

    def _texts(self, tokens: Tensor) -> list[Row]:
        order = torch.argsort(tokens[0], descending=True, stable=True)[:MOST_TOKENS].tolist()
        labels = list(map(LoneTokens(self._tokenizer).named, order))
        count = Counter(labels)
        # Some vocabularies have a text twice, as a byte and as a piece.
        shown = (
            f"{text} (token {token})" if count[text] > 1 else text for text, token in zip(labels, order, strict=True)
        )
        return _rows(shown, tokens[:, order])


def part_of(text: str, *, begins: bool = False) -> str:
    """Return the member of `PARTS` that a token's text is, on its own.

    Args:
        text: of the token.
        begins: whether it begins a sentence, so that a capital does not make it a name.
    """
    content = text.strip()
    if not content:
        return "whitespace"
    if REPLACEMENT in content:
        return "parts of characters"
    kinds = {unicodedata.category(character)[0] for character in content}
    if kinds == {"N"}:
        return "numbers"
    if kinds <= {"P", "S"}:
        return "punctuation"
    return "names" if content[0].isupper() and content != "I" and not begins else "words"


def _count_in_sample(marks: Tensor, step: ScoredStep) -> Tensor:
    """Return how many of the marks, bool [R], stand in each token's sample up to the token and with it, int64 [R]."""
    layout = step.layout
    total = torch.cumsum(marks.long(), 0)
    return total - (total - marks.long())[layout.first][layout.sample]


def _loss_bin(nll: Tensor) -> Tensor:
    octaves = torch.log2(torch.nan_to_num(nll, nan=torch.inf).clamp(2.0**LOSS_FLOOR, 2.0**6))
    return ((octaves - LOSS_FLOOR) * PER_OCTAVE).long().clamp(0, LOSS_BINS - 1)


def _rows(labels: Iterable[str], counts: Tensor) -> list[Row]:
    """Return the rows of counts, [2, n], in which anything was seen."""
    seen, kept = counts.tolist()
    return [row for row in zip(labels, seen, kept, strict=True) if row[1]]


def _deciles(counts: Tensor) -> list[Row]:
    """Merge bins of losses, [2, LOSS_BINS], into ten groups of about as many tokens; a bin is never cut."""
    seen, kept = counts.tolist()
    total = sum(seen)
    rows: list[Row] = []
    start = tenth = passed = 0
    for place in range(LOSS_BINS):
        passed += seen[place]
        if total and passed * 10 // total > tenth:
            tenth = passed * 10 // total
            bins = slice(start, place + 1)
            rows.append((f"{_edge(start)} to {_edge(place + 1)}", sum(seen[bins]), sum(kept[bins])))
            start = place + 1
    return rows


def _edge(place: int) -> str:
    # Neighbours differ by 7 %, which two digits do not always tell.
    return "0" if place == 0 else f"{2.0 ** (LOSS_FLOOR + place / PER_OCTAVE):.3g}"
