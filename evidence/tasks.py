"""Tasks whose answers follow from their prompts, so that whoever reads a sample knows which of its digits are noise.

A sample is one line of symbols, `WIDTH` of them, each a token of its own:

    <s> TASK x1 ... x11 = y1 ... y10 </s>        y_i = (a x_i + b x_(i+1) + c) mod 16

The digits are 0 to 15, and TASK is a word that stands for (a, b, c). With a or b odd, answers of uniform prompts are
uniform, so that no task is easier than another because some digits are frequent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MODULUS = 16
PROMPT_DIGITS, ANSWER_DIGITS = 11, 10


@dataclass(frozen=True)
class Rule:
    """The weights of a task: y_i = (a x_i + b x_(i+1) + c) mod 16."""

    a: int
    b: int
    c: int = 0


RULES: Mapping[str, Rule] = {
    "copy": Rule(1, 0),
    "next": Rule(0, 1),
    "shift": Rule(1, 0, 5),
    "known": Rule(1, -1),
    "half": Rule(3, 1),
    "new": Rule(1, 1),
}

PAD, BEGIN, END, UNKNOWN, ANSWER = "<pad>", "<s>", "</s>", "<unk>", "="
# The number of a symbol is its token id.
VOCABULARY: Sequence[str] = (PAD, BEGIN, END, UNKNOWN, ANSWER, *RULES, *map(str, range(MODULUS)))
FIRST_DIGIT = VOCABULARY.index("0")
_TASK_PLACE, _PROMPT_PLACE = 1, 2
ANSWER_PLACE = _PROMPT_PLACE + PROMPT_DIGITS + 1
END_PLACE = ANSWER_PLACE + ANSWER_DIGITS
WIDTH = END_PLACE + 1

# One prompt in so many is held out, whatever the task.
_HELD_OUT_SHARE = 16


def are_held_out(of: Ints) -> Bools:
    """Tell of prompts, [N, PROMPT_DIGITS], whether they are kept for evaluation: no training has one of them."""
    hashed = (hashlib.blake2b(prompt, digest_size=1).digest()[0] for prompt in of.astype(np.uint8))
    found: Bools = np.fromiter(hashed, np.int64, len(of)) % _HELD_OUT_SHARE == 0
    return found


def prompts(count: int, rng: np.random.Generator, *, held_out: bool) -> Ints:
    """Draw prompts uniformly among those of training, or those that are held out; [count, PROMPT_DIGITS], digits."""
    found = np.zeros((0, PROMPT_DIGITS), np.int64)
    while len(found) < count:
        drawn = rng.integers(0, MODULUS, (count, PROMPT_DIGITS))
        found = np.concatenate([found, drawn[are_held_out(drawn) == held_out]])
    return found[:count]


def answers(rule: Rule, of: Ints) -> Ints:
    """Return the true answers, digits [N, ANSWER_DIGITS], of prompts [N, PROMPT_DIGITS]."""
    return (rule.a * of[:, :-1] + rule.b * of[:, 1:] + rule.c) % MODULUS


@dataclass(frozen=True)
class Noise:
    """What may happen to the digits of a data set. Levels are nested: what 10 % replace, 20 % replace alike.

    Attributes:
        chance: float64 [N, ANSWER_DIGITS], uniform in [0, 1): a digit is replaced where it is below the level.
        shift: int64 likewise, 1 to MODULUS - 1: what is added to a digit that is replaced, which makes it another one.
    """

    chance: NDArray[np.float64]
    shift: Ints

    @classmethod
    def draw(cls, count: int, rng: np.random.Generator) -> Noise:
        """Draw the noise of so many samples."""
        shape = (count, ANSWER_DIGITS)
        return cls(rng.random(shape), rng.integers(1, MODULUS, shape))

    def on(self, clean: Ints, level: float) -> Ints:
        """Return answers with a share of their digits, 0 to 1, replaced; both [N, ANSWER_DIGITS]."""
        return np.where(self.chance < level, (clean + self.shift) % MODULUS, clean)


def rows(task: str, of: Ints, said: Ints) -> Ints:
    """Return the token ids of samples, [N, WIDTH], with prompts [N, PROMPT_DIGITS] and answers [N, ANSWER_DIGITS]."""

    def column(symbol: str) -> Ints:
        return np.full((len(of), 1), VOCABULARY.index(symbol))

    digits = (column(BEGIN), column(task), of + FIRST_DIGIT, column(ANSWER), said + FIRST_DIGIT, column(END))
    return np.concatenate(digits, axis=1)


def is_noise(ids: Ints) -> Bools:
    """Tell of each response digit of samples whether it is other than the truth, which the prompt tells.

    Args:
        ids: token ids, [N, WIDTH].

    Returns:
        bool [N, ANSWER_DIGITS].

    Raises:
        ValueError: they are no samples of these tasks.
    """
    marks = {VOCABULARY.index(task): rule for task, rule in RULES.items()}
    if ids.ndim != 2 or ids.shape[1] != WIDTH or not np.isin(ids[:, _TASK_PLACE], list(marks)).all():
        raise ValueError(f"these are no samples of the tasks of this file: their token ids have the shape {ids.shape}.")
    of = ids[:, _PROMPT_PLACE : _PROMPT_PLACE + PROMPT_DIGITS] - FIRST_DIGIT
    truth = np.zeros((len(ids), ANSWER_DIGITS), np.int64)
    for mark, rule in marks.items():
        own = ids[:, _TASK_PLACE] == mark
        truth[own] = answers(rule, of[own])
    found: Bools = ids[:, ANSWER_PLACE:END_PLACE] - FIRST_DIGIT != truth
    return found


def as_segments(ids: Ints, trained: Bools) -> Iterator[dict[str, Any]]:
    """Yield samples as Axolotl's `type: input_output` reads them.

    Args:
        ids: token ids, [N, WIDTH].
        trained: bool [N, WIDTH], the tokens that have a label.
    """
    for row, labelled in zip(ids.tolist(), trained.tolist(), strict=True):
        parts = groupby(zip(row, labelled, strict=True), lambda pair: pair[1])
        texts = ((label, " ".join(VOCABULARY[token] for token, _ in part)) for label, part in parts)
        yield {"segments": [{"label": label, "text": text} for label, text in texts]}


def response(count: int) -> Bools:
    """Return where the responses of so many samples stand, bool [count, WIDTH]."""
    return np.broadcast_to(np.arange(WIDTH) >= ANSWER_PLACE, (count, WIDTH))
