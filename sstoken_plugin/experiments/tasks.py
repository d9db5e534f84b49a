"""Tasks of lm-evaluation-harness, where it is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from sstoken_plugin.axolotl.experiment import Trained
from sstoken_plugin.experiments.config import TasksEvaluation
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.experiments.statistics import Better
from sstoken_plugin.selection.config import nearest


def refuse_missing(place: str, tasks: Sequence[str]) -> None:
    """Refuse tasks that cannot be run here.

    Raises:
        ValueError: the harness is not installed, or has no such task; one sentence with key and fix.
    """
    if find_spec("lm_eval") is None:
        raise ValueError(
            f"{place}: lm-evaluation-harness is not installed; install it, as by `pip install lm_eval`, or remove "
            f"{place}."
        )
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    for task in tasks:
        if task not in known:
            raise ValueError(f"{place}.tasks: {task} is no task of lm-evaluation-harness; the nearest one is "
                             f"{nearest(task, known)}.")  # fmt: skip


def measure_tasks(trained: Trained, asked: TasksEvaluation) -> dict[str, Measure]:
    """Return every number that the harness gives for the tasks, but for standard errors."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=trained.model,
        tokenizer=trained.tokenizer,
        batch_size=asked.batch_size,
        # It opens a context of its own, which would end one around it.
        mixed_precision_dtype=trained.autocast,
    )
    found = simple_evaluate(
        model=model,
        tasks=list(asked.tasks),
        num_fewshot=asked.few_shot,
        limit=asked.limit,
        log_samples=False,
        bootstrap_iters=0,
    )
    return measures_of(found)


def measures_of(found: Any) -> dict[str, Measure]:
    """Turn what the harness returns into measures."""
    measures = {}
    for task, values in found["results"].items():
        for key, value in values.items():
            # A metric and the filter of answers that it is taken after; other keys are no metrics.
            name, comma, chosen = key.partition(",")
            if not comma or isinstance(value, bool) or not isinstance(value, float | int) or name.endswith("_stderr"):
                continue
            higher = found.get("higher_is_better", {}).get(task, {}).get(name)
            better: Better | None = None if higher is None else "higher" if higher else "lower"
            kind = "" if chosen == "none" else f" ({chosen})"
            count = found.get("n-samples", {}).get(task, {}).get("effective", 0)
            shown = float(value) if math.isfinite(value) else None
            measures[f"{task}/{name}{kind}"] = Measure(shown, better, f"{name}{kind} of task {task}", count)
    return measures
