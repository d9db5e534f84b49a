"""An evaluation of one trained model: the same for all arms, with no part of the plugin in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from sstoken_plugin.axolotl.experiment import Trained
from sstoken_plugin.experiments.answers import measure_answers
from sstoken_plugin.experiments.config import AnswersEvaluation, Evaluation, TasksEvaluation
from sstoken_plugin.experiments.losses import measure_losses
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.experiments.tasks import measure_tasks


def evaluate(trained: Trained, name: str, asked: Evaluation, rows_of: Callable[[], Any]) -> dict[str, Measure]:
    """Return the measures of an evaluation under `EVALUATION/MEASURE`.

    Args:
        trained: the model.
        name: of the evaluation.
        asked: the evaluation.
        rows_of: returns its prepared samples, if it has any.

    Raises:
        ValueError: it cannot be had on its data; one sentence with key and fix.
    """
    try:
        measures = _measures(trained, asked, rows_of)
    except ValueError as error:
        raise ValueError(f"evaluations.{name}: {error}") from error
    return {f"{name}/{key}": measure for key, measure in measures.items()}


def _measures(trained: Trained, asked: Evaluation, rows_of: Callable[[], Any]) -> dict[str, Measure]:
    if isinstance(asked, TasksEvaluation):
        return measure_tasks(trained, asked)
    rows: Iterator[Any] = islice(rows_of(), asked.samples)
    return (
        measure_answers(trained, rows, asked) if isinstance(asked, AnswersEvaluation) else measure_losses(trained, rows)
    )
