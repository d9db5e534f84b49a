"""Responses that are wrong in known ways: words shuffled, the answer of another sample, boilerplate inserted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Sample = dict[str, Any]

BOILERPLATE = (
    "Thank you for your question!",
    "I hope this helps, and please let me know if you need anything else.",
    "As always, it is important to consider all aspects of the matter carefully.",
    "Please note that this information is provided without any warranty.",
    "Great question, this is a topic that many people ask about.",
)
# Where a sentence may stand: the beginning, the end, and what follows a line or a full stop.
_SEAM = re.compile(r"\n+|(?<=[.!?]) +")
_INSERTED = 2


def corrupted(samples: Sequence[Sample], share: float, seed: Sequence[int]) -> tuple[list[Sample], list[int]]:
    """Corrupt the responses of some samples, a third of them in each way.

    Args:
        samples: `{"messages": [{"role", "content"}, ...]}`.
        share: of the samples. Those of a smaller share are among those of a larger one, corrupted alike.
        seed: of the choice and the corruption.

    Returns:
        All samples, and the places of those that were corrupted, sorted.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(samples))
    chosen = order[: round(share * len(samples))]
    made = list(samples)
    for number, place in enumerate(chosen.tolist()):
        # Of its own, so that what comes before it changes nothing.
        own = np.random.default_rng([*seed, place])
        way = (_with_words_shuffled, _with_other_answers, _with_boilerplate)[number % 3]
        made[place] = way(samples, place, own)
    return made, sorted(chosen.tolist())


def _with_words_shuffled(samples: Sequence[Sample], place: int, rng: np.random.Generator) -> Sample:
    def shuffled(text: str) -> str:
        words = text.split()
        return " ".join(words[index] for index in rng.permutation(len(words)))

    return _changed(samples[place], [shuffled(text) for text in _responses(samples[place])])


def _with_other_answers(samples: Sequence[Sample], place: int, rng: np.random.Generator) -> Sample:
    count = len(_responses(samples[place]))
    others = [other for index, other in enumerate(samples) if index != place]
    texts: list[str] = []
    while len(texts) < count:
        texts += _responses(others[int(rng.integers(len(others)))])
    return _changed(samples[place], texts[:count])


def _with_boilerplate(samples: Sequence[Sample], place: int, rng: np.random.Generator) -> Sample:
    def padded(text: str) -> str:
        for sentence in rng.permutation(len(BOILERPLATE))[:_INSERTED]:
            seams = [0, *(found.end() for found in _SEAM.finditer(text)), len(text)]
            seam = seams[int(rng.integers(len(seams)))]
            # Not glued to what stands before it.
            before = text[:seam] if not seam or text[:seam][-1].isspace() else f"{text[:seam]} "
            text = f"{before}{BOILERPLATE[sentence]} {text[seam:]}".rstrip()
        return text

    return _changed(samples[place], [padded(text) for text in _responses(samples[place])])


def _responses(sample: Sample) -> list[str]:
    return [message["content"] for message in sample["messages"] if message["role"] == "assistant"]


def _changed(sample: Sample, responses: Sequence[str]) -> Sample:
    """Return a sample with other responses."""
    left = iter(responses)
    return {
        "messages": [
            {**message, "content": next(left)} if message["role"] == "assistant" else message
            for message in sample["messages"]
        ]
    }
