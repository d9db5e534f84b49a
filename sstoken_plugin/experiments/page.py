"""The page of an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from sstoken_plugin.base.numbers import counted, number
from sstoken_plugin.base.visible_text import cut, visible
from sstoken_plugin.experiments.comparison import Table, sentence
from sstoken_plugin.experiments.plot import Row, draw
from sstoken_plugin.experiments.results import Result
from sstoken_plugin.experiments.statistics import HELPS, HURTS, Interval
from sstoken_plugin.report.drawing.document import document, escaped, html_table
from sstoken_plugin.training.metrics import MEANINGS

_LONGEST = 20_000
_TONES = {HELPS: "better", HURTS: "worse"}


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        title: of the page.
        tables: measures; the first decides.
        smallest: the smallest difference of interest, of the first.
        results: of all runs that are there.
        runs: number of runs of the experiment.
        notes: sentences about the experiment as a whole, such as runs that are missing.
        warnings: sentences that a reader should have read first.
        settings: the experiment.
        what: what the measure that decides was taken on, in words.
    """

    title: str
    tables: Sequence[Table]
    smallest: float
    results: Sequence[Result]
    runs: int
    notes: Sequence[str]
    warnings: Sequence[str]
    settings: Mapping[str, Any]
    what: str = ""


def render(page: Page) -> str:
    """Return the HTML document."""
    sections = [
        _answer(page),
        *(["<h2>Other measures</h2>", *map(_other, page.tables[1:])] if len(page.tables) > 1 else []),
        _kept(page.results),
        _settings(page),
    ]
    return document(page.title, _head(page), "".join(sections), _style())


def _head(page: Page) -> str:
    seeds = sorted({result.seed for result in page.results})
    facts = f"{len(page.results)} of {page.runs} runs, with {counted(len(seeds), 'seed')}."
    warnings = "".join(f'<p class="warning">{escaped(each)}</p>' for each in page.warnings)
    return f"<p>{escaped(page.what)} {facts}</p>{warnings}" + "".join(
        f'<p class="note">{escaped(note)}</p>' for note in page.notes
    )


def _answer(page: Page) -> str:
    if not page.tables:
        return "<h2>The answer</h2><p>There is no result yet.</p>"
    table = page.tables[0]
    if not table.comparisons:
        told = '<p class="note">No arm to compare with: add an arm "all", plain training, or "random".</p>'
    else:
        items = "".join(f"<li>{escaped(sentence(each, table, page.smallest))}</li>" for each in table.comparisons)
        told = f'<ul class="answers">{items}</ul>'
    return (
        f"<h2>The answer</h2><p>By {escaped(table.words)} ({escaped(table.name)}){_way(table)}.</p>{told}"
        f"{_drawn(table)}"
        '<p class="note">Dots are seeds, a stroke is their mean, a bar its 95 % interval. Differences are of the same '
        "seed: same first weights, same order of samples. Their intervals are by Student's t, and widened (Bonferroni) "
        "so that all comparisons with one arm hold together with 95 %; a verdict is given where the interval leaves "
        "out 0. Intervals tell what chance in the training does, not what another evaluation set would give.</p>"
    )


def _way(table: Table) -> str:
    """Return which way is better, and what the untrained model has, for as far as there is either."""
    way = f", of which {'less' if table.better == 'lower' else 'more'} is better" if table.better else ""
    return way if table.untrained is None else f"{way}; {number(table.untrained)} before training"


def _other(table: Table) -> str:
    told = "".join(f"<li>{escaped(sentence(each, table, 0))}</li>" for each in table.comparisons)
    return (
        f"<details><summary>{escaped(table.name)}: {escaped(table.words)}{_way(table)}</summary>"
        f'<ul class="answers">{told}</ul>{_drawn(table)}</details>'
    )


def _drawn(table: Table) -> str:
    """Return the plots and the tables of a measure."""
    arms = [Row(arm, interval, table.values[arm]) for arm, interval in table.means.items() if table.values[arm]]
    differences = [
        Row(
            f"{each.arm} - {each.against}",
            each.difference,
            [] if each.difference.mean is None else _differences(table, each.arm, each.against),
            _TONES.get(each.verdict, ""),
        )
        for each in table.comparisons
    ]
    means = html_table(
        ["arm", "mean", "95 % interval", "by seed"],
        ([arm, number(mean.mean), _reach(mean), _by_seed(table, arm)] for arm, mean in table.means.items()),
    )
    pairs = html_table(
        ["arm", "against", "difference", "95 % interval", "seeds", "verdict"],
        (
            [
                each.arm,
                each.against,
                number(each.difference.mean, signed=True),
                _reach(each.difference, signed=True),
                str(each.difference.count),
                each.verdict,
            ]
            for each in table.comparisons
        ),
    )
    return (
        f"{draw(arms, f'{table.name} of each arm')}{means}"
        f"{draw(differences, f'{table.name}: differences of arms', zero=True)}{pairs if table.comparisons else ''}"
    )


def _by_seed(table: Table, arm: str) -> str:
    pairs = zip(table.seeds[arm], table.values[arm], strict=True)
    return ", ".join(f"{seed}: {number(value)}" for seed, value in pairs)


def _differences(table: Table, arm: str, other: str) -> list[float]:
    own, others = (dict(zip(table.seeds[name], table.values[name], strict=True)) for name in (arm, other))
    return [value - base for seed, value in own.items() if value is not None and (base := others.get(seed)) is not None]


def _reach(interval: Interval, *, signed: bool = False) -> str:
    if interval.low is None or interval.high is None:
        return "none"
    return f"{number(interval.low, signed=signed)} to {number(interval.high, signed=signed)}"


def _kept(results: Sequence[Result]) -> str:
    """Return what each arm trained on, means over seeds."""
    arms = list(dict.fromkeys(result.arm for result in results))
    names = [name for name in _metrics() if any(name in result.kept for result in results)]
    rows = []
    for arm in arms:
        own = [result for result in results if result.arm == arm]
        means = [_mean(result.kept.get(name) for result in own) for name in names]
        if not any("sstoken" in result.settings.get("train", ()) for result in own):
            means = ["all tokens" if name == "selected_ratio" else "–" for name in names]  # noqa: RUF001
        steps = sorted({result.steps for result in own if result.steps})
        rows.append([arm, *means, ", ".join(map(str, steps)), _mean(result.train_seconds / 60 for result in own)])
    notes = "".join(f"<li><b>{escaped(name)}</b>: {escaped(MEANINGS[f'sstoken/{name}'])}</li>" for name in names)
    return (
        "<h2>What each arm kept</h2><p>Means over the steps of each run and over seeds.</p>"
        f"{html_table(['arm', *names, 'steps', 'minutes of training'], rows)}"
        f'<details><summary>What the columns are</summary><ul class="answers">{notes}</ul></details>'
    )


@cache
def _metrics() -> list[str]:
    return [name.removeprefix("sstoken/") for name in MEANINGS]


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known)) if known else "–"  # noqa: RUF001


def _settings(page: Page) -> str:
    versions = sorted({tuple(sorted(result.versions.items())) for result in page.results})
    shown = yaml.safe_dump(dict(page.settings), sort_keys=False, allow_unicode=True)
    shown = escape(visible(cut(shown, _LONGEST)))
    tables = "".join(html_table(["package", "version"], map(list, pairs)) for pairs in versions)
    return (
        f"<h2>Settings and versions</h2><details><summary>The experiment</summary><pre>{shown}</pre></details>{tables}"
    )


@cache
def _style() -> str:
    return (files("sstoken_plugin.experiments") / "page.css").read_text(encoding="utf-8")
