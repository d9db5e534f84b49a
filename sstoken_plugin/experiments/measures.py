"""What an evaluation measures: a number, which way is better, and what it means in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sstoken_plugin.experiments.statistics import Better

WORDS = {
    "loss": "loss, mean over all response tokens",
    "loss_answer": "loss of the answers' tokens",
    "loss_reasoning": "loss of the tokens inside <think>...</think>",
    "loss_end_of_turn": "loss of the tokens that end a turn",
    "exact_match": "share of greedy answers that are the reference",
    "answer_tokens": "mean length of greedy answers, in tokens",
    "ended": "share of greedy answers that ended by themselves",
}


@dataclass(frozen=True)
class Measure:
    """One number of one run.

    Attributes:
        value: in nats a token for losses; None where it is not finite or there was nothing to measure.
        better: which values are better; None where neither is.
        words: what it is.
        count: tokens or samples that it is a mean of.
    """

    value: float | None
    better: Better | None
    words: str
    count: int

    @classmethod
    def of(cls, name: str, total: float, count: int, better: Better | None) -> Measure:
        """Return the mean of what adds up to a total."""
        value = total / count if count else math.nan
        return cls(value if math.isfinite(value) else None, better, WORDS[name], count)

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> Measure:
        """Read what `as_json` gave.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(found, Mapping) or found.keys() != {"value", "better", "words", "count"}:
            raise ValueError(f"{found!r} is no measure")
        value = found["value"]
        is_number = value is None or (isinstance(value, float | int) and math.isfinite(value))
        if not is_number or found["better"] not in ("lower", "higher", None) or not isinstance(found["count"], int):
            raise ValueError(f"{found!r} is no measure")
        return cls(None if value is None else float(value), found["better"], str(found["words"]), found["count"])
