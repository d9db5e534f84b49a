"""The same samples side by side: which of their tokens each run keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby, takewhile

from sstoken_plugin.base.numbers import counted
from sstoken_plugin.base.visible_text import cut, visible
from sstoken_plugin.report import terminal
from sstoken_plugin.report.content import Record
from sstoken_plugin.report.drawing.chart import key
from sstoken_plugin.report.drawing.document import escaped
from sstoken_plugin.report.encoding import MAX_TOKEN_TEXT
from sstoken_plugin.report.runs.finished import FinishedRun
from sstoken_plugin.report.window import Run, window

# Of the HTML of all samples, so that the page can be mailed.
_MOST_CHARACTERS = 4_000_000
# Ids and texts of a sample: with another tokenizer it is another one.
_Key = tuple[tuple[int, ...], tuple[str, ...]]


def side_by_side(runs: Sequence[FinishedRun], letters: str) -> str:
    """Return HTML of the samples that two runs or more have on their pages, as each run's last moment keeps them.

    Args:
        runs: the runs.
        letters: one for each.
    """
    found = {place: _last_records(run) for place, run in enumerate(runs)}
    with_samples = [place for place, records in found.items() if records]
    keys = dict.fromkeys(key for place in with_samples for key in found[place])
    shared = [key for key in keys if sum(key in found[place] for place in with_samples) > 1]
    if not shared:
        return f"<p>{_why_none(runs, with_samples)}</p>"
    parts = [
        '<p>Trained on: <span class="kept">kept tokens</span> are underlined. Not trained on: '
        '<s class="dropped">dropped ones</s> are struck through. <span class="kept differs">Framed</span>: the runs do '
        f"not agree. {_moments(runs, with_samples, letters)}</p>",
        *(f"<p>{line}</p>" for line in _agreements(found, shared, letters)),
    ]
    for number, each in enumerate(shared):
        own = {place: found[place][each] for place in with_samples if each in found[place]}
        if sum(map(len, parts)) > _MOST_CHARACTERS:
            left = len(shared) - number
            told = f"{counted(left, 'more sample')} {'is' if left == 1 else 'are'} left out, to keep the page small."
            parts.append(f'<p class="note">{told}</p>')
            break
        parts.append(_sample(own, runs, letters))
    return "".join(parts)


def tokenizers_differ(runs: Sequence[FinishedRun]) -> bool:
    """Tell whether the samples of any two runs were made with different tokenizers."""
    tables = [_texts_by_id(run) for run in runs]
    known = [table for table in tables if table]
    return any(_differ(known[0], table) for table in known[1:]) if known else False


def _differ(one: Mapping[int, set[str]], other: Mapping[int, set[str]]) -> bool:
    common = one.keys() & other.keys()
    # A few may have other texts, which depend on their neighbours.
    if common and sum(one[token].isdisjoint(other[token]) for token in common) * 2 > len(common):
        return True
    by_text = {text: token for token, texts in one.items() for text in texts}
    again = [(token, text) for token, texts in other.items() for text in texts if text in by_text]
    return bool(again) and sum(by_text[text] != token for token, text in again) * 2 > len(again)


def _texts_by_id(run: FinishedRun) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for ids, texts in _last_records(run):
        for token, text in zip(ids, texts, strict=True):
            found.setdefault(token, set()).add(text)
    return found


def _last_records(run: FinishedRun) -> dict[_Key, Record]:
    if run.report is None or not run.report.moments:
        return {}
    records = run.report.moments[-1].records
    found: dict[_Key, Record] = {}
    for record in records:
        found.setdefault((tuple(record["input_ids"]), tuple(record["tokens"])), record)
    return found


def _why_none(runs: Sequence[FinishedRun], with_samples: Sequence[int]) -> str:
    if len(with_samples) < 2:
        return "Fewer than two of the runs have samples: plain training and a run with report: false have none."
    if tokenizers_differ(runs):
        return "The runs have no sample in common, because their tokenizers differ."
    return "The runs have no sample in common: their data, their prompts or their sequence lengths differ."


def _moments(runs: Sequence[FinishedRun], with_samples: Sequence[int], letters: str) -> str:
    labels = [f"{letters[place]} {runs[place].report.moments[-1].label}" for place in with_samples  # type: ignore[union-attr]
              if runs[place].report is not None]  # fmt: skip
    return escaped(f"Shown as of: {', '.join(labels)}.")


def _agreements(found: Mapping[int, Mapping[_Key, Record]], shared: Sequence[_Key], letters: str) -> Iterator[str]:
    """Yield how far each run agrees with the first one on the samples that both have."""
    first, *others = [place for place, records in found.items() if records]
    for place in others:
        both = [each for each in shared if each in found[first] and each in found[place]]
        if both:
            told = terminal.agreement([found[first][each] for each in both], [found[place][each] for each in both])
            yield escaped(f"{letters[first]} and {letters[place]}, {counted(len(both), 'sample')}: {told}")


def _sample(records: Mapping[int, Record], runs: Sequence[FinishedRun], letters: str) -> str:
    first = next(iter(records.values()))
    pieces = window([any(marks) for marks in zip(*(record["response"] for record in records.values()), strict=True)])
    differs = [
        len({record["selected"][place] for record in records.values() if record["response"][place]}) > 1
        for place in range(len(first["tokens"]))
    ]
    lead = list(takewhile(lambda piece: not piece.response, pieces))
    prompt = "".join(_prompt(piece, first) for piece in lead)
    columns = "".join(
        f'<div class="column"><h4>{key(place)} {escaped(f"{letters[place]} {runs[place].name}")}: '
        f"{sum(record['selected']):,} of {counted(sum(record['response']), 'response token')} kept</h4>"
        f'<p class="words">{"".join(_piece(piece, record, differs) for piece in pieces[len(lead) :])}</p></div>'
        for place, record in records.items()
    )
    return (
        f'<article class="sample"><h3>Sample {first.get("sample", "")}: {counted(sum(differs), "token")} on which the '
        f'runs do not agree</h3><p class="words prompt">{prompt}</p><div class="side">{columns}</div></article>'
    )


def _piece(piece: Run, record: Record, differs: Sequence[bool]) -> str:
    if not piece.shown or not piece.response:
        return _prompt(piece, record)
    places = range(piece.start, piece.stop)
    groups = groupby(places, lambda place: (record["response"][place], record["selected"][place], differs[place]))
    return "".join(_marked(record, list(group), *state) for state, group in groups)


def _marked(record: Record, places: Sequence[int], response: bool, kept: bool, differs: bool) -> str:
    words = _words(record, places)
    if not response:
        return f'<span class="prompt">{words}</span>'
    tag, name = ("span", "kept") if kept else ("s", "dropped")
    # Heard where the line through the text is not.
    said = f'<span class="said">{name}{", unlike others" if differs else ""}: </span>'
    return f'<{tag} class="{name}{" differs" if differs else ""}">{said}{words}</{tag}>'


def _prompt(piece: Run, record: Record) -> str:
    if not piece.shown:
        return f'<span class="left-out">[{counted(len(piece), "token")} left out]</span>'
    return f'<span class="prompt">{_words(record, range(piece.start, piece.stop))}</span>'


def _words(record: Record, places: Sequence[int]) -> str:
    text = "".join(cut(record["tokens"][place], MAX_TOKEN_TEXT) for place in places)
    return escape(visible(text)).replace("\n", "↵\n")
