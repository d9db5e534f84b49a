"""Samples and moments as the page's script reads them: `samples` and `moments` of the JSON in its element `data`.

What else is in there, the frame, is made by `render`: `verdict`, `facts`, `settings`, `versions`, `series` (steps and
values of logged numbers by name), `losses` (title, name and legend of those that are losses), `tables`, `notes`, and
texts.

Numbers travel as base64 of little-endian float32, NaN for None: exact, because selection works in float32, and small.
An array of nothing but NaN travels as "". A sample's arrays have one entry a response token, from the first on.

A sample is the same at every moment: `name` (its row in the data set), `length` (its tokens), `responses` (those of its
response), `numbers` (those of them that the arrays have), `prompt` (whether it has one), `ends` (indices among its
response tokens of those that rank first), `runs`, and `history` where the losses of the history do not change.

A run is an unbroken stretch of prompt or response: `label`, `start` (its place in the sample), `count` (its tokens) and
`text`; one of the response has `lengths` (uint16, UTF-16 units of `text` of each token) and `ids` (int32), too. One
that is left out has `cut`, its tokens, alone.

A moment has `label`, `gamma` and `ratio`, see `Moment`, `rule` (what ranked, in words), `blends` and `readsRatio`
(whether that is a blend of REL and attention, and whether it reads a ratio), and `records`, one a sample: `kept` (how
many tokens are), `selected` (one bit a token, lowest first), `current`, `attention`, `score`, `rel` unless it is
`history` - `current` to the last bit, and `history` where it changes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sstoken_plugin.base.visible_text import MAX_LINE, cut
from sstoken_plugin.report.content import Moment, Record
from sstoken_plugin.report.window import Run, window

Array = NDArray[Any]

# Response tokens of a sample whose numbers go onto the page; a longer response cannot be selected anew there.
MAX_NUMBERS = 8192
# Characters of one token.
MAX_TOKEN_TEXT = 300


class EncodedSample:
    """One sample in the page's terms.

    Attributes:
        fixed: what is the same at every moment: text, places, history losses if they do not change.
        moments: what is not, one entry a moment.
    """

    def __init__(self, records: Sequence[Record], ends: Collection[int]):
        """Encode a sample.

        Args:
            records: the sample's record at each moment, at least one.
            ends: places of the tokens that rank before all others.
        """
        first = records[0]
        runs = window(first["response"])
        places = [place for place, response in enumerate(first["response"]) if response]
        shown = sum(len(run) for run in runs if run.response and run.shown)
        numbers, texts = places[:MAX_NUMBERS], places[:shown]
        histories = [_floats(record["history_nll"], texts) for record in records]
        steady = len({array.tobytes() for array in histories}) == 1
        self.fixed: dict[str, Any] = {
            "name": str(first["sample"])[:MAX_LINE],
            "length": len(first["response"]),
            "responses": len(places),
            "prompt": has_prompt(first),
            "numbers": len(numbers),
            "ends": [index for index, place in enumerate(numbers) if place in ends],
            "runs": [_run(run, first) for run in runs],
            **({"history": _base64(histories[0])} if steady else {}),
        }
        self.moments: list[dict[str, Any]] = []
        for record, history in zip(records, histories, strict=True):
            current, rel = _floats(record["current_nll"], texts), _floats(record["rel"], numbers)
            with np.errstate(invalid="ignore"):
                is_difference = len(texts) == len(numbers) and np.array_equal(history - current, rel, equal_nan=True)
            self.moments.append(
                {
                    "kept": sum(map(bool, record["selected"])),
                    "selected": _bits(record["selected"], numbers),
                    "current": _base64(current),
                    **({} if is_difference else {"rel": _base64(rel)}),
                    "attention": _base64(_floats(record["attention"], numbers)),
                    "score": _base64(_floats(record["score"], numbers)),
                    **({} if steady else {"history": _base64(history)}),
                }
            )


def encode(moments: Sequence[Moment], ends: Sequence[Collection[int]]) -> list[EncodedSample]:
    """Encode the samples that every moment has; one entry a sample.

    Args:
        moments: see `Report`.
        ends: see `Report`.
    """
    columns = zip(*(moment.records for moment in moments), strict=False)
    return [
        EncodedSample(records, set(ends[number]) if number < len(ends) else ())
        for number, records in enumerate(columns)
    ]


def has_prompt(record: Record) -> bool:
    """Say whether a sample has any prompt token.

    The first token is never a response token, even where it is labelled: it counts as a prompt only if the response
    was seen to attend to it.
    """
    others = sum(not response for response in record["response"][1:])
    if others or not record["response"] or record["response"][0]:
        return others > 0
    measured = [value for value in record["attention"] if value is not None]
    return not measured or any(measured)


def _run(run: Run, record: Record) -> dict[str, Any]:
    if not run.shown:
        return {"cut": len(run)}
    name = "response" if run.response else "prompt"
    texts = [cut(text, MAX_TOKEN_TEXT) for text in record["tokens"][run.start : run.stop]]
    found: dict[str, Any] = {
        "label": name if run.number == 1 else f"{name} {run.number}",
        "start": run.start,
        "count": len(run),
        "text": "".join(texts),
    }
    if run.response:
        units = [len(text.encode("utf-16-le", "surrogatepass")) // 2 for text in texts]
        found["lengths"] = _base64(np.array(units, dtype="<u2"))
        found["ids"] = _base64(np.array(record["input_ids"][run.start : run.stop], dtype="<i4"))
    return found


def _floats(values: Sequence[float | None], places: Sequence[int]) -> Array:
    numbers = [math.nan if values[place] is None else values[place] for place in places]
    with np.errstate(over="ignore"):
        return np.array(numbers, dtype="<f4")


def _base64(array: Array) -> str:
    """Encode an array; one without any finite number is ""."""
    return base64.b64encode(array.tobytes()).decode() if np.isfinite(array).any() else ""


def _bits(values: Sequence[bool], places: Sequence[int]) -> str:
    chosen = np.array([bool(values[place]) for place in places], dtype=bool)
    return base64.b64encode(np.packbits(chosen, bitorder="little").tobytes()).decode()
