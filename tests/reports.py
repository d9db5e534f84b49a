"""Records and reports made up for the tests of the report page."""

import math

import numpy as np

from sstoken_plugin.report import Moment, Report

NUMBERS = ("current_nll", "history_nll", "rel", "attention", "score")


def record(tokens, prompt=1, response=None, sample=0, **fields):
    """A record of these tokens, the first `prompt` of which are the prompt; every second response token is kept."""
    response = response or [place >= prompt for place in range(len(tokens))]
    numbers = [0.5 if there else None for there in response]
    return {
        "sample": sample,
        "input_ids": list(range(100, 100 + len(tokens))),
        "tokens": tokens,
        "response": response,
        "selected": [there and place % 2 == 0 for place, there in enumerate(response)],
        **{name: list(numbers) for name in NUMBERS},
        **fields,
    }


def drawn(count, seed, prompt=4, sample=0, ratio=0.6):
    """A record of random numbers that selects by them: REL and attention half each."""
    random = np.random.default_rng(seed)
    current, history, attention = random.random((3, count), dtype=np.float32)
    rel = history - current
    score = (rel - rel.min()) / (rel.max() - rel.min() + np.float32(1e-8)) / 2 + attention / 2
    best = set(np.argsort(-score, kind="stable")[: math.ceil(ratio * count)].tolist())
    columns = zip(NUMBERS, (current, history, rel, attention, score), strict=True)
    return record(
        [f"w{place} " for place in range(prompt + count)],
        prompt=prompt,
        sample=sample,
        selected=[False] * prompt + [place in best for place in range(count)],
        **{name: [None] * prompt + values.tolist() for name, values in columns},
    )


def moment(records, label="step 3", rule="sstoken", gamma=0.5, ratio=0.6):
    return Moment(label, rule, gamma, ratio, records)


def report(*moments, **fields):
    """A report of these moments, or of one with these records."""
    moments = [part if isinstance(part, Moment) else moment([part]) for part in moments]
    plain = {"sentence": "A sentence.", "settings": {}, "versions": {}, "history": ""}
    return Report(**{**plain, "moments": moments, **fields})
