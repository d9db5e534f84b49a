"""The head of the page, in sentences: what was trained on, whether it looks healthy, whether it paid, what is next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sstoken_plugin.report.content import KINDS, Breakdown, Report
from sstoken_plugin.report.fit import points
from sstoken_plugin.selection.selectors import SELECTORS
from sstoken_plugin.training.monitor import WINDOW

# Kinds that are named, of those seen at least so often.
MOST_KINDS, LEAST_SEEN = 3, 20
# A share this much above the ratio is explained.
ROUNDED = 0.01
# Relative change of a loss that is none.
STEADY = 0.005
HEALTH = "Does it look healthy?"


@dataclass(frozen=True)
class Finding:
    """One question and its answer.

    Attributes:
        question: a few words.
        answer: a few words more, always on show.
        sentences: the rest, which a phone shows when asked; what stands between two ` is code.
        tone: how the answer is shown.
    """

    question: str
    answer: str
    sentences: Sequence[str]
    tone: Literal["plain", "good", "warning"] = "plain"


def verdict(report: Report) -> list[Finding]:
    """Return the findings that a report allows; what it cannot tell is said.

    Args:
        report: of a training, which has a log, or of an inspection.
    """
    if report.log:
        return [_trained_on(report, "What was trained on"), _health(report), _paid(report), _next(report)]
    answer = "Nothing was trained for this page."
    return [
        _trained_on(report, "What would be trained on"),
        *([_warned(report)] if report.warnings else []),
        Finding("Next", answer, ["Train: the run writes a page like this one, with curves and warnings."]),
    ]


def _trained_on(report: Report, question: str) -> Finding:
    seen, kept = _counted(report)
    if not seen:
        return Finding(question, "Nothing was counted.", [])
    found = [f"{kept:,} of {seen:,}: {_rule(report)}."]
    ratio = report.settings.get("ratio")
    if isinstance(ratio, float) and _reads_ratio(report) and kept / seen > ratio + ROUNDED:
        found.append(
            f"More than `ratio: {ratio:g}`: what is kept of each sample is rounded up, ends of turns included, which "
            "shows where responses are short."
        )
    if dropped := _dropped_kinds(report.breakdowns):
        found.append(f"Dropped most often: {dropped}.")
    return Finding(question, f"{_percent(kept, seen)} of the response tokens", found)


def _counted(report: Report) -> tuple[int, int]:
    """Return how many response tokens were seen and kept: over the data, or else on the samples of the last moment."""
    totals = [tuple(map(sum, list(zip(*table.rows, strict=True))[1:])) for table in report.breakdowns if table.rows]
    if report.log and totals:
        # Some tables leave tokens out, and one at least counts them all.
        seen, kept = max(totals)
        return seen, kept
    records = report.moments[-1].records if report.moments else []
    return sum(sum(record["response"]) for record in records), sum(sum(record["selected"]) for record in records)


def _rule(report: Report) -> str:
    name = report.settings.get("selector")
    row = SELECTORS.get(str(name))
    if row is None:
        return f"ranked by {name}"
    if row.keeps_all:
        return "every one, as in plain training"
    if row.is_threshold:
        return f"those with a probability of {report.settings.get('min_probability'):g} or more"
    gamma = report.settings.get("gamma", 0.5)
    return f"the best by {(row.page or row.words).format(gamma=f'{gamma:g}', rest=f'{1 - gamma:g}')}"


def _keeps_all(report: Report) -> bool:
    row = SELECTORS.get(str(report.settings.get("selector")))
    return row is not None and row.keeps_all


def _reads_ratio(report: Report) -> bool:
    row = SELECTORS.get(str(report.settings.get("selector")))
    return row is None or row.reads_ratio


def _dropped_kinds(tables: Sequence[Breakdown]) -> str:
    """Name the kinds of tokens that were dropped more often than all together."""
    rows = [row for table in tables if table.title == KINDS for row in table.rows]
    seen, kept = sum(row[1] for row in rows), sum(row[2] for row in rows)
    often = [(1 - k / n, label) for label, n, k in rows if n >= LEAST_SEEN and k * seen < kept * n]
    named = sorted(often, reverse=True)[:MOST_KINDS]
    return ", ".join(f"{label} ({share:.0%})".replace("%", "\u00a0%") for share, label in named)


def _warnings(report: Report) -> list[str]:
    return [_sentence(warning.removeprefix("ssToken: ")) for warning in report.warnings]


def _warned(report: Report) -> Finding:
    count = len(report.warnings)
    answer = f"{count:,} warning{'s' * (count != 1)}"
    return Finding(
        HEALTH, answer, [_sentence(warning.removeprefix("ssToken: ")) for warning in report.warnings], "warning"
    )


def _health(report: Report) -> Finding:
    if report.warnings:
        return _warned(report)
    if _keeps_all(report):
        return Finding(HEALTH, "Yes: no warning", ["Nothing was dropped that could be unlearned."], "good")
    lines = len(points(report.log, "sstoken/loss_unselected"))
    if lines < 2 * WINDOW:
        return Finding(
            HEALTH,
            "No warning, in a short run",
            [
                f"Whether dropped tokens are unlearned takes {2 * WINDOW} log lines to tell, and this run has {lines} "
                "with a loss on them; a lower `logging_steps` gives more."
            ],
        )
    return Finding(
        HEALTH, "Yes: no warning", ["Dropped tokens were not unlearned, and position alone does not rank."], "good"
    )


def _paid(report: Report) -> Finding:
    evaluated = points(report.log, "eval_loss")
    found = ["This run was plain training."] if _keeps_all(report) else []
    if evaluated:
        found.append(f"The evaluation loss, over all response tokens, {_course(evaluated)}.")
    else:
        found.append("It was not evaluated, so that no loss over all response tokens is known.")
    if not _keeps_all(report):
        found.append(
            "The training loss is another thing, over kept tokens alone: it compares neither with that nor with the "
            "training loss of a plain run."
        )
    return Finding("Did it pay?", "One run alone cannot tell.", found)


def _course(values: Sequence[tuple[float, float]]) -> str:
    """Say where a loss went: steps and values."""
    (start, first), (end, last) = values[0], values[-1]
    if len(values) == 1:
        return f"was {last:.4g} at step {end:,}"
    change = last - first
    if abs(change) <= STEADY * abs(first):
        verb = f"stayed at {last:.4g}"
    else:
        verb = f"{'fell' if change < 0 else 'rose'} from {first:.4g} to {last:.4g}"
    best_step, best = min(values, key=lambda point: point[1])
    lowest = f", lowest {best:.4g} at step {best_step:,}" if best < min(first, last) else ""
    return f"{verb} (steps {start:,} to {end:,}{lowest})"


def _next(report: Report) -> Finding:
    found = []
    ends = points(report.log, "sstoken/eos_selected")
    if ends and ends[-1][1] < 1 and not _keeps_all(report):
        found.append(
            f"Of the ends of turns {_percent(ends[-1][1], 1)} were kept at last: set `keep_eos: true` lest the model "
            "does not learn to stop."
        )
    if not points(report.log, "eval_loss"):
        found.append("Give the run evaluation data.")
    found.append("Read the first samples: is what is struck through what you would leave out?")
    answer = "Do what the warnings say." if report.warnings else "Compare it with plain training."
    return Finding("Next", answer, [*filter(None, [report.compare]), *found])


def _sentence(text: str) -> str:
    # A key is written as it is.
    first = text.split(" ", 1)[0]
    return text if not first.isalpha() else text[:1].upper() + text[1:]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}\u00a0%"
