"""The head of the page, in sentences: what was trained on, whether it looks healthy, whether it paid, what is next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sstoken_plugin.base.numbers import counted, percent
from sstoken_plugin.report.content import KINDS, Breakdown, Report
from sstoken_plugin.report.fit import points
from sstoken_plugin.report.losses import OVER_ALL, evaluation_set, evaluations
from sstoken_plugin.report.ranking import Ranking
from sstoken_plugin.selection.selectors import selector_of
from sstoken_plugin.training.monitor import WINDOW

# Kinds that are named, of those seen at least so often.
MOST_KINDS, LEAST_SEEN = 3, 20
# Evaluation losses that have a sentence each.
MOST_LOSSES = 4
# Relative change of a loss that is none.
STEADY = 0.005
HEALTH = "Does it look healthy?"
# The label of a moment of a run.
_STEP = re.compile(r"step \d+ of (\d+)$")


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
        report: of a training, which has taken steps, or of an inspection.
    """
    ranking = Ranking.of_counted(report)
    if _is_training(report):
        return [_trained_on(report, ranking), _health(report, ranking), _paid(report, ranking), _next(report, ranking)]
    models = "; ".join(moment.label for moment in report.moments)
    return [
        _trained_on(report, ranking),
        *([_warned(report)] if report.warnings else []),
        Finding(
            "Next",
            "Read the samples, then train.",
            [
                *([f"The model that selects here: {models}."] if models else []),
                "A run writes a page like this one, with curves and warnings.",
            ],
        ),
    ]


def _is_training(report: Report) -> bool:
    # A checkpoint may be older than the first line of the log.
    return bool(report.log) or "steps" in report.facts


def _trained_on(report: Report, ranking: Ranking) -> Finding:
    is_training = _is_training(report)
    question = "What was trained on" if is_training else "What would be trained on"
    totals = [tuple(map(sum, list(zip(*table.rows, strict=True))[1:])) for table in report.breakdowns if table.rows]
    if is_training and totals:
        # Some tables leave tokens out, and one at least counts them all.
        seen, kept = max(totals)
        of, where = "", " after the warm-up" if ranking.follows_warmup else ""
    else:
        last = report.moments[-1] if report.moments else None
        records = last.records if last else []
        seen, kept = (sum(sum(record[name]) for record in records) for name in ("response", "selected"))
        of, where = " in the samples shown", f" there ({last.label})" if last else ""
    if not seen:
        return Finding(question, "Nothing was counted.", [])
    rule = "every one, as in plain training" if ranking.keeps_everything else f"ranked by {ranking.words}"
    found = [f"{kept:,} of {seen:,}{where}, {rule}.", *_warmup(ranking, is_training)]
    if report.share and not ranking.is_warmup:
        found.append(f"{_sentence(report.share)}.")
    if dropped := _dropped_kinds(report.breakdowns):
        found.append(f"Dropped most often: {dropped}.")
    return Finding(question, f"{_percent(kept / seen)} of the response tokens{of}", found)


def _warmup(ranking: Ranking, is_training: bool) -> list[str]:
    """Say what a warm-up has to do with what was counted; nothing where there is none."""
    config = ranking.config
    if config is not None and ranking.is_warmup:
        return [
            f"That is the warm-up (`warmup_ratio: {config.warmup_ratio:g}`): `selector: {config.selector}` has not "
            "ranked."
        ]
    if config is not None and ranking.follows_warmup:
        takes = "trained" if is_training else "trains"
        return [
            f"The warm-up, the first {100 * config.warmup_ratio:g}\u00a0% of the optimizer steps, {takes} on "
            f"{selector_of(config.warmup_selector).warmup}."
        ]
    return []


def _dropped_kinds(tables: Sequence[Breakdown]) -> str:
    """Name the kinds of tokens that were dropped more often than all together."""
    rows = [row for table in tables if table.title == KINDS for row in table.rows]
    seen, kept = sum(row[1] for row in rows), sum(row[2] for row in rows)
    often = [((n - k) / n, label) for label, n, k in rows if n >= LEAST_SEEN and k * seen < kept * n]
    named = sorted(often, reverse=True)[:MOST_KINDS]
    return ", ".join(f"{label} ({_percent(share)})" for share, label in named)


def _warned(report: Report) -> Finding:
    found = [_sentence(warning.removeprefix("ssToken: ")) for warning in report.warnings]
    return Finding(HEALTH, counted(len(found), "warning"), found, "warning")


def _health(report: Report, ranking: Ranking) -> Finding:
    if report.warnings:
        return _warned(report)
    if ranking.keeps_everything:
        return Finding(HEALTH, "Yes: no warning", ["Nothing was dropped that could be unlearned."], "good")
    lines = _watched_lines(report, ranking)
    if lines < 2 * WINDOW:
        after = " after the warm-up" if ranking.follows_warmup else ""
        return Finding(
            HEALTH,
            "No warning, in a short run",
            [
                f"Whether dropped tokens are unlearned takes {2 * WINDOW} log lines to tell, and this run has {lines} "
                f"with a loss on them{after}; a lower `logging_steps` gives more."
            ],
        )
    row = ranking.row
    is_watched = row is not None and not (row.is_position or ranking.is_threshold)
    position = ", and position alone does not rank" if is_watched else ""
    return Finding(HEALTH, "Yes: no warning", [f"Dropped tokens were not unlearned{position}."], "good")


def _watched_lines(report: Report, ranking: Ranking) -> int:
    """Return how many log lines the watch for unlearning has seen, which begins anew after the warm-up."""
    steps = [int(step) for step, _ in points(report.log, "sstoken/loss_unselected")]
    config = ranking.config
    if config is None or not ranking.follows_warmup or not steps:
        return len(steps)
    label = _STEP.search(report.moments[-1].label) if report.moments else None
    begin = config.warmup_steps(int(label[1]) if label else steps[-1])
    return sum(step > begin for step in steps)


def _paid(report: Report, ranking: Ranking) -> Finding:
    found = ["This run was plain training."] if ranking.keeps_everything else []
    found += _evaluated(report) or ["It was not evaluated, so that no loss over all response tokens is known."]
    if not ranking.keeps_everything:
        tokens = "a sum over kept tokens by the number of all" if ranking.is_threshold else "over kept tokens alone"
        found.append(
            f"The training loss is another thing, {tokens}: it compares neither with that nor with the training loss "
            "of a plain run."
        )
    return Finding("Did it pay?", "One run alone cannot tell.", found)


def _evaluated(report: Report) -> list[str]:
    """Say where each evaluation loss went."""
    losses = list(evaluations(report.log).items())
    found = []
    for name, values in losses[:MOST_LOSSES]:
        data = evaluation_set(name)
        found.append(f"The evaluation loss{f' on {data}' if data else ''}, {OVER_ALL}, {_course(values)}.")
    if more := len(losses) - len(found):
        found.append(f"The log has those of {counted(more, 'more set')}.")
    return found


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


def _next(report: Report, ranking: Ranking) -> Finding:
    found = []
    ends = points(report.log, "sstoken/eos_selected")
    if ends and ends[-1][1] < 1 and not ranking.keeps_everything:
        found.append(
            f"Of the ends of turns {_percent(ends[-1][1])} were kept at last: set `keep_eos: true` lest the model "
            "does not learn to stop."
        )
    if not evaluations(report.log):
        found.append("Give the run evaluation data.")
    if not ranking.keeps_everything:
        found.append("Read the first samples: is what is struck through what you would leave out?")
    answer, how = _comparison(report, ranking)
    if report.warnings:
        answer = "Do what the warnings say."
    return Finding("Next", answer, [*filter(None, [how]), *found])


def _comparison(report: Report, ranking: Ranking) -> tuple[str, str]:
    """Say with what a run is to be compared, and how."""
    if ranking.is_warmup:
        return "Train past the warm-up.", "Before its end there is no selection to compare with plain training."
    if ranking.keeps_everything:
        return "Compare it with a run that selects.", (
            "Train once more with a selector that drops tokens, such as `selector: sstoken` with `ratio: 0.6`, on the "
            "same data with the same seed; `python -m sstoken_plugin sstoken-report` draws both on one page."
        )
    return "Compare it with plain training.", report.compare


def _sentence(text: str) -> str:
    # A key is written as it is.
    first = text.split(" ", 1)[0]
    return text if not first.isalpha() else text[:1].upper() + text[1:]


def _percent(share: float) -> str:
    return percent(share, space="\u00a0")
