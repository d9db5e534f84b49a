"""What runs logged: their curves over one another, and their evaluation losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sstoken_plugin.base.numbers import is_number, number
from sstoken_plugin.report.drawing.chart import Curve, chart
from sstoken_plugin.report.drawing.document import html_table
from sstoken_plugin.report.fit import mean_over_steps, points, series
from sstoken_plugin.report.losses import is_evaluation
from sstoken_plugin.report.runs.finished import FinishedRun

_KEPT_SHARE, _KEPT, _DROPPED = "sstoken/selected_ratio", "sstoken/loss_selected", "sstoken/loss_unselected"
# No name of a log line.
_ALL = "loss over all response tokens"
_FIRST = {
    _ALL: (
        "Training loss over all response tokens",
        "Of a run that selects, from its loss on kept and on dropped tokens; of plain training, its own loss. With "
        "dropout, and of other weights at every step: evaluation losses compare better.",
    ),
    _KEPT: (
        "Training loss over kept tokens",
        "Each run keeps tokens of its own, so that a lower curve here may only mean easier tokens.",
    ),
    _DROPPED: ("Training loss over dropped tokens", "Each run drops tokens of its own."),
    _KEPT_SHARE: ("Share of response tokens kept", "Plain training keeps all."),
}
_OF_EVALUATION = "Over all response tokens of the evaluation data, whatever was trained on."
_OTHERS = ("learning_rate", "grad_norm")


def charts(runs: Sequence[FinishedRun], letters: str) -> tuple[list[str], list[str]]:
    """Return the charts of what matters, and those of other metrics that two runs or more have.

    Args:
        runs: the runs.
        letters: one for each.
    """
    drawn = [series([{**line, **_over_all(line, run)} for line in run.log])[0] for run in runs]
    names = list(dict.fromkeys(name for each in drawn for name in each))

    def curves(name: str) -> list[Curve]:
        return [
            Curve(letter, place, *each[name])
            for place, (letter, each) in enumerate(zip(letters, drawn, strict=True))
            if name in each
        ]

    main = [chart(curves(name), f"Evaluation loss ({name})", _OF_EVALUATION) for name in names if is_evaluation(name)]
    main += [chart(curves(name), title, note, share=name == _KEPT_SHARE) for name, (title, note) in _FIRST.items()]
    others = [name for name in names if name not in _FIRST and (name.startswith("sstoken/") or name in _OTHERS)]
    notes = {name: note for run in runs if run.report is not None for name, note in run.report.notes.items()}
    more = [chart(curves(name), name, notes.get(name, "")) for name in others if len(curves(name)) > 1]
    return list(filter(None, main)), list(filter(None, more))


def kept_share(run: FinishedRun) -> float | None:
    """Return the share of response tokens that a run kept, as a mean over its steps; None where it is not known."""
    return mean_over_steps(run.log, _KEPT_SHARE) if run.selects else 1.0


def evaluations(runs: Sequence[FinishedRun], letters: str) -> str:
    """Return the tables of evaluation losses, with differences from the first run that has one; "" without any."""
    names = dict.fromkeys(name for run in runs for line in run.log for name in line if is_evaluation(name))
    tables = {name: [points(run.log, name) for run in runs] for name in names}
    return "".join(_table(runs, letters, name, logged) for name, logged in tables.items() if any(logged))


def _table(
    runs: Sequence[FinishedRun], letters: str, name: str, logged: Sequence[Sequence[tuple[float, float]]]
) -> str:
    first = next(place for place, found in enumerate(logged) if found)
    base = logged[first][-1][1]
    rows = []
    for place, (run, found) in enumerate(zip(runs, logged, strict=True)):
        if not found:
            rows.append([f"{letters[place]} {run.name}", "none logged", "", "", ""])
            continue
        (step, last), (lowest_step, lowest) = found[-1], min(found, key=lambda point: point[1])
        difference = "" if place == first else number(last - base, signed=True)
        lowest_told = f"{number(lowest)} at step {lowest_step:g}"
        rows.append([f"{letters[place]} {run.name}", number(last), f"{step:g}", difference, lowest_told])
    return html_table(["run", f"last {name}", "at step", f"difference from {letters[first]}", "lowest"], rows)


def _over_all(line: Mapping[str, Any], run: FinishedRun) -> dict[str, float]:
    """Return a training log line's loss over all response tokens, where it follows from what was logged."""
    if not run.selects:
        return {_ALL: line["loss"]} if is_number(line.get("loss")) else {}
    share, kept, dropped = (
        line[name] if is_number(line.get(name)) else None for name in (_KEPT_SHARE, _KEPT, _DROPPED)
    )
    if share is None or kept is None:
        return {}
    if dropped is None:
        # Where nothing was dropped there is no such loss.
        return {_ALL: kept} if share == 1 else {}
    return {_ALL: share * kept + (1 - share) * dropped}
