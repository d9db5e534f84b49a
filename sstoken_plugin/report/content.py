"""What the report page shows: the contract between those who measure and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from sstoken_plugin.base.numbers import is_number

# Fields of a record that hold a number or nothing for each token.
NUMBERS = ("current_nll", "history_nll", "rel", "attention", "score")
# Title of the breakdown by kind of token: numbers, code, names, ...
KINDS = "By kind of token"
# Above every token id and label, and above every count that the page's script can tell from the next.
MOST_ID, MOST_COUNT = 2**31, 2**53


class Record(TypedDict):
    """A scored sample: a line of selections.jsonl, see docs/configuration.md. Every list has one entry a token.

    Attributes:
        sample: number of the row in the data set, from 0.
        input_ids: token ids.
        tokens: their texts.
        response: which of them are response tokens.
        current_nll: loss of the model, in nats; None off the response and where there is no finite number, as below.
        history_nll: loss of the history.
        rel: the difference.
        attention: attention on the prompt, 0 to 1.
        score: what ranked the tokens.
        selected: which of them are kept.
        labels: labels of somebody's own; not there where they are the tokens themselves.
    """

    sample: NotRequired[int]
    input_ids: list[int]
    tokens: list[str]
    response: list[bool]
    current_nll: list[float | None]
    history_nll: list[float | None]
    rel: list[float | None]
    attention: list[float | None]
    score: list[float | None]
    selected: list[bool]
    labels: NotRequired[list[int]]


@dataclass(frozen=True)
class Moment:
    """The same samples scored at one moment of the training, or by one adapter.

    Attributes:
        label: names the moment: "before training", "step 40 of 100", "adapter out/a".
        rule: what ranked the tokens then: the name of a selector.
        gamma: weight of REL in the score then, 0 to 1.
        ratio: fraction of each sample's response tokens that was kept, above 0 and up to 1; 1 where no
            ratio decides, as with a threshold.
        records: one a sample, with the fields of a line of selections.jsonl. The texts in `tokens` join to the
            decoded sample: a token inside a character that an earlier token began has an empty text. Losses and
            REL are in nats. Every moment has the same samples in the same order.
    """

    label: str
    rule: str
    gamma: float
    ratio: float
    records: Sequence[Record]


@dataclass(frozen=True)
class Breakdown:
    """One table that says where tokens were kept.

    Attributes:
        title: "By text", "By turn", ...
        note: one sentence that says what is counted.
        rows: label, tokens seen, tokens kept.
        rule: what ranked these tokens: the name of a selector; "" if that is not known.
    """

    title: str
    note: str
    rows: Sequence[tuple[str, int, int]]
    rule: str = ""


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        sentence: what was selected and how, in words.
        facts: what was run, name to value: model, data, adapter, date.
        compare: a sentence that says how to find out whether the selection pays.
        share: why the data keeps another share of its tokens than `ratio`, a sentence without its stop; "" if it does
            not, or that is not known.
        settings: the `sstoken:` block.
        versions: package name to version.
        history: what the history is, in words; "" if there is none.
        moments: in the order of training.
        ends: of each sample, the places of the tokens that rank before all others; empty if `keep_eos` is false.
        log: log lines of the training: `step`, and numbers by name. A line need not have every name.
        warnings: warnings raised about the selection.
        breakdowns: tables.
        notes: name of a logged number to one line that explains it.
    """

    sentence: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    history: str
    moments: Sequence[Moment]
    ends: Sequence[Sequence[int]] = ()
    log: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    breakdowns: Sequence[Breakdown] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    compare: str = ""
    share: str = ""


def is_record(found: Mapping[str, Any]) -> bool:
    """Tell whether what was read from a file has the fields of a record, and as many entries in each."""
    columns = {name: found.get(name) for name in (*NUMBERS, "input_ids", "tokens", "response", "selected")}
    labels = {"labels": found["labels"]} if "labels" in found else {}
    length = len(columns["input_ids"]) if isinstance(columns["input_ids"], list) else -1
    return isinstance(found.get("sample"), int) and all(
        isinstance(column, list) and len(column) == length and all(_is_entry(name, entry) for entry in column)
        for name, column in {**columns, **labels}.items()
    )


def _is_entry(name: str, entry: Any) -> bool:
    if name in NUMBERS:
        return entry is None or is_number(entry)
    if name in ("input_ids", "labels"):
        return isinstance(entry, int) and abs(entry) < MOST_ID
    return isinstance(entry, str if name == "tokens" else bool)
