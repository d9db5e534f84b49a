"""Puts page, style, script and data together into one HTML document that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from sstoken_plugin.base.numbers import is_number
from sstoken_plugin.base.visible_text import cut
from sstoken_plugin.report.content import Moment, Report
from sstoken_plugin.report.encoding import encode
from sstoken_plugin.report.fit import MAX_LABEL, MAX_POINTS, MAX_TABLES, choose, series, table
from sstoken_plugin.report.losses import OF_EVALUATION, OVER_ALL, evaluation_set, evaluations, training_loss
from sstoken_plugin.report.ranking import Ranking, config_of
from sstoken_plugin.report.verdict import verdict
from sstoken_plugin.selection.config import SSTokenConfig

# The whole document: small enough to be mailed where fewer moments can make it so, and never more than opens at once.
SMALL_BYTES, MAX_BYTES = 5_000_000, 40_000_000
# Of one answer: there may be as many warnings as steps.
MAX_SENTENCES = 20
MAX_SETTINGS = 60
MAX_FACTS = 12

# In this order: a file uses, or overrides, what those before it define.
_STYLES = ("page.css", "verdict.css", "samples.css", "figures.css", "screens.css")
_SCRIPTS = ("numbers.js", "text.js", "state.js", "verdict.js", "samples.js", "search.js", "strips.js", "tokens.js",
            "controls.js", "curves.js", "histograms.js", "tables.js", "start.js")  # fmt: skip

# What could end the data's element, and what an HTML parser or an editor would not leave as it is.
_UNSAFE = re.compile("[<>&\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


def render(report: Report) -> str:
    """Return the page: one HTML document below `MAX_BYTES` bytes that asks the network for nothing.

    It is below `SMALL_BYTES` where leaving out moments makes it so.

    What does not fit is left out, and the page says so.
    """
    moments = [moment for moment in report.moments if moment.records]
    samples = encode(moments, report.ends)
    fixed = [_json(sample.fixed) for sample in samples]
    scored = [[_json(record) for record in sample.moments] for sample in samples]
    frame = _frame(report)
    config = config_of(report.settings)
    named = [_json(_moment(moment, config)) for moment in moments]
    # Room for the commas between, and for labels and sentences that the choice adds.
    heads = sum(map(_size, named))
    used = _size(_document(_json(frame), "[]", "[]")) + heads + 2000
    sizes = [(_size(text) + 2, [_size(entry) + 2 for entry in each]) for text, each in zip(fixed, scored, strict=True)]
    chosen, count = choose(len(moments), sizes, SMALL_BYTES - used, MAX_BYTES - used)
    left_out = [
        *([f"{len(moments) - len(chosen)} of {len(moments)} moments"] if len(chosen) < len(moments) else []),
        *([f"the last {len(samples) - count} of {len(samples)} samples"] if count < len(samples) else []),
        *frame["left_out"],
    ]
    shown = [
        named[index][:-1] + ',"records":[' + ",".join(each[index] for each in scored[:count]) + "]}" for index in chosen
    ]
    parts = "[" + ",".join(fixed[:count]) + "]", "[" + ",".join(shown) + "]"
    frame["left_out"] = _left_out(left_out)
    return _document(_json({**frame, "size": _in_bytes(_size(_document(_json(frame), *parts)))}), *parts)


def _frame(report: Report) -> dict[str, Any]:
    """Return all but samples and moments."""
    drawn, names = series(report.log)
    ranking = Ranking.of_counted(report)
    words, meaning = training_loss(ranking)
    evaluated = {cut(name, MAX_LABEL): evaluation_set(name) for name in evaluations(report.log)}
    notes = {**report.notes, "loss": meaning, **dict.fromkeys(evaluated, OF_EVALUATION)}
    tables = [breakdown for breakdown in report.breakdowns if breakdown.rows]
    return {
        "sentence": cut(report.sentence),
        "history": cut(report.history),
        "verdict": [
            {"question": one.question, "answer": one.answer, "sentences": _sentences(one.sentences), "tone": one.tone}
            for one in verdict(report)
        ],
        "facts": _lines(report.facts)[:MAX_FACTS],
        # Where a moment's rule has no use for them, what-if begins with those of the settings.
        **{name: report.settings[name] for name in ("ratio", "gamma") if is_number(report.settings.get(name))},
        "settings": _lines(report.settings),
        "versions": _lines(report.versions),
        "notes": {name: cut(notes[name]) for name in drawn if name in notes},
        "series": drawn,
        # Title, logged number and legend of charts, apart since they are different things.
        "losses": [
            ["Training loss", "loss", words],
            *([f"Evaluation loss{f' on {data}' if data else ''}", name, OVER_ALL] for name, data in evaluated.items()),
        ],
        "thinned": _thinned(len(report.log)),
        "counted": f"In all the data that was trained on{' after the warm-up' if ranking.follows_warmup else ''}:",
        "tables": [table(breakdown) for breakdown in tables[:MAX_TABLES]],
        "left_out": [
            *([f"the last {names - len(drawn)} of {names} curves"] if names > len(drawn) else []),
            *([f"the last {len(tables) - MAX_TABLES} of {len(tables)} tables"] if len(tables) > MAX_TABLES else []),
        ],
    }


def _sentences(sentences: Sequence[str]) -> list[str]:
    more = len(sentences) - MAX_SENTENCES
    return [cut(one) for one in sentences[:MAX_SENTENCES]] + (
        [f"{'There is' if more == 1 else 'There are'} {more} more."] if more > 0 else []
    )


def _thinned(lines: int) -> str:
    return f"Of {lines} log lines, curves show up to {MAX_POINTS}, evenly chosen." if lines > MAX_POINTS else ""


def _moment(moment: Moment, config: SSTokenConfig | None) -> dict[str, Any]:
    ranking = Ranking(moment.rule, moment.gamma, config)
    row = ranking.row
    return {
        "label": cut(moment.label, 200),
        "rule": cut(ranking.words),
        "blends": row is not None and row.rel_weight is not None,
        "readsRatio": row is None or row.reads_ratio,
        "gamma": float(moment.gamma),
        "ratio": float(moment.ratio),
    }


def _lines(values: Mapping[str, Any]) -> list[list[str]]:
    """Return names and values as YAML would show them."""
    words = {None: "null", True: "true", False: "false"}
    return [
        [cut(str(name)), words[value] if value is None or isinstance(value, bool) else cut(str(value))]
        for name, value in list(values.items())[:MAX_SETTINGS]
    ]


def _left_out(parts: Sequence[str]) -> str:
    return f"Left out to keep this page small: {' and '.join(parts)}." if parts else ""


def _in_bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _json(value: Any) -> str:
    """Return JSON that can stand inside a script element whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _size(text: str) -> int:
    return len(text.encode())


def _document(frame: str, samples: str, moments: str) -> str:
    parts = {
        "STYLE": _style(),
        "SCRIPT": _script(),
        "STYLE_HASH": csp_hash(_style()),
        "SCRIPT_HASH": csp_hash(_script()),
        "DATA": f'{frame[:-1]},"samples":{samples},"moments":{moments}}}',
    }
    # One pass: a part that happens to hold a placeholder is not filled in again.
    return re.sub(r"@@(\w+)@@", lambda match: parts[match[1]], page_file("page.html"))


@cache
def _style() -> str:
    return "".join(map(page_file, _STYLES))


@cache
def _script() -> str:
    # A scope of their own; the files share it.
    return '(() => {\n"use strict";\n' + "\n".join(map(page_file, _SCRIPTS)) + "\n})();\n"


def csp_hash(text: str) -> str:
    """Return what a page's Content-Security-Policy calls a style or a script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def page_file(name: str) -> str:
    """Return a file of the page."""
    return (files("sstoken_plugin.report") / "page" / name).read_text(encoding="utf-8")
