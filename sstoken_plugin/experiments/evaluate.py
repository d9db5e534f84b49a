"""Every evaluation of an experiment on one trained model: the same for all arms, with no part of the plugin in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from sstoken_plugin.axolotl.experiment import Trained
from sstoken_plugin.experiments.answers import measure_answers
from sstoken_plugin.experiments.config import AnswersEvaluation, Evaluation, TasksEvaluation
from sstoken_plugin.experiments.losses import measure_losses
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.experiments.tasks import measure_tasks


def evaluate(
    trained: Trained,
    evaluations: Mapping[str, Evaluation],
    rows_of: Callable[[Evaluation], Any],
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, Measure]:
    """Return the measures of all evaluations under `EVALUATION/MEASURE`.

    Args:
        trained: the model.
        evaluations: by name.
        rows_of: returns the prepared samples of one.
        tell: is called with the name of each before it begins.

    Raises:
        ValueError: one cannot be had on its data; one sentence with key and fix.
    """
    found: dict[str, Measure] = {}
    for name, asked in evaluations.items():
        tell(name)
        try:
            measures = _measures(trained, asked, rows_of)
        except ValueError as error:
            raise ValueError(f"evaluations.{name}: {error}") from error
        found |= {f"{name}/{key}": measure for key, measure in measures.items()}
    return found


def _measures(trained: Trained, asked: Evaluation, rows_of: Callable[[Evaluation], Any]) -> dict[str, Measure]:
    if isinstance(asked, TasksEvaluation):
        return measure_tasks(trained, asked)
    rows: Iterator[Any] = islice(rows_of(asked), asked.samples)
    return (
        measure_answers(trained, rows, asked) if isinstance(asked, AnswersEvaluation) else measure_losses(trained, rows)
    )
