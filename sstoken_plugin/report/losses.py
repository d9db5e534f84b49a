"""The losses that a trainer logs: which are of evaluation data, and over which tokens each is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sstoken_plugin.base.visible_text import cut
from sstoken_plugin.report.fit import MAX_LABEL, points
from sstoken_plugin.report.ranking import Ranking

# Of one set of evaluation data, and of several, which have names.
_EVALUATION = re.compile(r"eval_(?:(.+)_)?loss")
OVER_ALL = "over all response tokens"
OF_EVALUATION = "mean loss of all response tokens, kept or not, of the evaluation data"
_APART = "it compares neither with the evaluation loss nor with the training loss of a plain run"


def is_evaluation(name: str) -> bool:
    """Tell whether a logged number is an evaluation loss."""
    return _EVALUATION.fullmatch(name) is not None


def evaluation_set(name: str) -> str:
    """Return the name of the data that an evaluation loss is of, of bounded length; "" where there is one set."""
    found = _EVALUATION.fullmatch(name)
    return cut((found and found[1]) or "", MAX_LABEL)


def evaluations(log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return the steps and values of each evaluation loss of a log, by its name."""
    names = dict.fromkeys(name for line in log for name in line if is_evaluation(name))
    return {name: found for name in names if (found := points(log, name))}


def training_loss(ranking: Ranking) -> tuple[str, str]:
    """Return over which tokens the `loss` of a training is: in few words, and in a sentence without its stop.

    Args:
        ranking: what ranked in the steps that were trained.
    """
    if ranking.keeps_everything:
        return OVER_ALL, "mean loss of all response tokens, as in plain training"
    if ranking.is_threshold:
        return "of kept tokens, per response token", (
            f"sum of the losses of kept tokens, over the number of all response tokens: {_APART}"
        )
    return "over kept tokens", f"mean loss of the tokens that were trained on: {_APART}"
