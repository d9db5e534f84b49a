"""From results to answers: what each arm has by seed, and what the paired differences tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sstoken_plugin.base.numbers import counted, number
from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.experiments.results import Result
from sstoken_plugin.experiments.statistics import (
    HELPS,
    HURTS,
    Better,
    Interval,
    mean_interval,
    paired,
    seeds_to_tell,
    verdict,
)


@dataclass(frozen=True)
class Comparison:
    """One arm against another, by one measure.

    Attributes:
        arm: its name.
        against: name of the other.
        difference: of the same seeds, arm minus other; its interval is one of `family` that hold together with 95 %.
        alone: the same with the interval that it would have if it were the only one.
        family: number of arms that are compared with this other one.
        verdict: see `statistics.verdict`; "" for a measure of which neither way is better.
        to_tell: seeds that would tell the difference that is there; None if it is told already or cannot be.
        to_tell_smallest: seeds that would tell the smallest difference of interest; None where that is none of this
            measure's, or the deviation is not known.
    """

    arm: str
    against: str
    difference: Interval
    alone: Interval
    family: int
    verdict: str
    to_tell: int | None
    to_tell_smallest: int | None

    @property
    def is_told(self) -> bool:
        """Whether the verdict is one."""
        return self.verdict in (HELPS, HURTS)


@dataclass(frozen=True)
class Table:
    """One measure of all arms.

    Attributes:
        name: `EVALUATION/MEASURE`.
        words: what it is.
        better: which values are better.
        seeds: by arm.
        values: by arm, one a seed; None where it is not finite.
        means: by arm.
        comparisons: of arms with baselines.
        untrained: of the model before training; None where it was not measured, or is not finite.
    """

    name: str
    words: str
    better: Better | None
    seeds: Mapping[str, Sequence[int]]
    values: Mapping[str, Sequence[float | None]]
    means: Mapping[str, Interval]
    comparisons: Sequence[Comparison]
    untrained: float | None = None


def tables_of(experiment: Experiment, results: Sequence[Result], untrained: Result | None = None) -> list[Table]:
    """Return a table for each measure, in the order of the evaluations; the first loss is the one that decides.

    Args:
        experiment: the experiment.
        results: of its trainings.
        untrained: of the model before them.
    """
    names = list(dict.fromkeys(name for result in results for name in result.measures))
    order = {name: place for place, name in enumerate(experiment.evaluations)}
    names.sort(key=lambda name: order.get(name.partition("/")[0], len(order)))
    deciding = deciding_measure(experiment)
    kinds = {name: asked.kind for name, asked in experiment.evaluations.items()}
    # What training should not change is no answer, if it is measured alone either.
    names.sort(key=lambda name: (name != deciding, kinds.get(name.partition("/")[0]) == "forgetting"))
    smallest = experiment.smallest_difference
    before = {} if untrained is None else untrained.measures
    return [
        _table(experiment, results, name, smallest if name == deciding else None, before.get(name)) for name in names
    ]


def deciding_measure(experiment: Experiment) -> str | None:
    """Return the name of the measure that decides: the first loss of held-out responses."""
    return next((f"{name}/loss" for name, asked in experiment.evaluations.items() if asked.kind == "loss"), None)


def _table(
    experiment: Experiment, results: Sequence[Result], name: str, smallest: float | None, before: Measure | None
) -> Table:
    measure = next(result.measures[name] for result in results if name in result.measures)
    by_arm: dict[str, dict[int, float | None]] = {}
    for arm in experiment.arms:
        of_arm = sorted((result for result in results if result.arm == arm.name), key=lambda result: result.seed)
        by_arm[arm.name] = {result.seed: result.measures[name].value for result in of_arm if name in result.measures}
    return Table(
        name=name,
        words=measure.words,
        better=measure.better,
        seeds={arm: list(values) for arm, values in by_arm.items()},
        values={arm: list(values.values()) for arm, values in by_arm.items()},
        means={arm: mean_interval(_numbers(list(values.values()))) for arm, values in by_arm.items()},
        comparisons=_comparisons(by_arm, experiment.against, measure.better, smallest),
        untrained=None if before is None else before.value,
    )


def _comparisons(
    by_arm: Mapping[str, Mapping[int, float | None]],
    against: Sequence[str],
    better: Better | None,
    smallest: float | None,
) -> list[Comparison]:
    found = []
    for place, other in enumerate(against):
        # A pair of baselines is compared once.
        arms = [arm for arm in by_arm if arm != other and arm not in against[:place]]
        for arm in arms:
            seeds = [seed for seed in by_arm[arm] if seed in by_arm[other]]
            values, others = ([by_arm[name][seed] for seed in seeds] for name in (arm, other))
            difference = paired(_numbers(values), _numbers(others), family=len(arms))
            alone = paired(_numbers(values), _numbers(others))
            told = "" if better is None else verdict(difference, better)
            found.append(
                Comparison(
                    arm, other, difference, alone, len(arms), told,
                    None if told in (HELPS, HURTS) else _to_tell(difference.mean, difference, len(arms)),
                    _to_tell(smallest, difference, len(arms)),
                )
            )  # fmt: skip
    return found


def doubts(experiment: Experiment, tables: Sequence[Table]) -> list[str]:
    """Say which arms ended in no number, or worse than the model before training, by the measure that decides."""
    table = next((table for table in tables if table.name == deciding_measure(experiment)), None)
    return [] if table is None else [*_not_finite(table), *_worse_than_untrained(experiment, table)]


def _not_finite(table: Table) -> list[str]:
    runs = [
        f"{arm}, seed {seed}"
        for arm, values in table.values.items()
        for seed, value in zip(table.seeds[arm], values, strict=True)
        if value is None
    ]
    if not runs:
        return []
    return [
        f"The loss is no finite number after {'; '.join(runs)}: the training diverged, and no comparison with such an "
        "arm is one. Look at the learning rate and at the log of the run."
    ]


def _worse_than_untrained(experiment: Experiment, table: Table) -> list[str]:
    if table.untrained is None:
        return []
    # Of an arm that starts from another model, it says nothing.
    own = [arm.name for arm in experiment.arms if not {"base_model", "lora_model_dir"} & arm.changes.keys()]
    means = {name: mean for name in own if (mean := table.means[name].mean) is not None}
    most = table.untrained + experiment.smallest_difference
    worse = [f"{name} ({number(mean)})" for name, mean in means.items() if mean > most]
    if not worse:
        return []
    return [
        f"Worse than the model before training ({number(table.untrained)}): {', '.join(worse)}. Look at the learning "
        "rate, at the data and at what is kept before you read a difference between such trainings as an answer."
    ]


def _to_tell(size: float | None, difference: Interval, family: int) -> int | None:
    if size is None or not difference.deviation:
        return None
    return seeds_to_tell(size, difference.deviation, family=family)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def sentence(comparison: Comparison, table: Table, smallest: float) -> str:
    """Say in one plain sentence what a comparison tells.

    Args:
        comparison: the comparison.
        table: of its measure.
        smallest: the smallest difference of interest.
    """
    difference = comparison.difference
    if not difference.count:
        return f"{comparison.arm} cannot be compared with {comparison.against} yet: they have no seed in common."
    if difference.mean is None:
        # A number or a plan of it would be of the others.
        return f"{comparison.arm} against {comparison.against} {comparison.verdict or 'cannot be compared'}."
    shown = number(difference.mean, signed=True)
    reach = ""
    if difference.low is not None:
        reach = f", 95 % interval {number(difference.low, signed=True)} to {number(difference.high, signed=True)}"
    facts = f"{shown} on average over {counted(difference.count, 'seed')}{reach}"
    if comparison.is_told:
        return f"{comparison.arm} {comparison.verdict} against {comparison.against} ({facts})."
    plans = []
    if comparison.to_tell is not None:
        plans.append(f"about {comparison.to_tell} seeds would tell a difference as large as the one seen")
    if comparison.to_tell_smallest is not None:
        plans.append(f"{comparison.to_tell_smallest} one of {smallest:g}" if plans else
                     f"about {comparison.to_tell_smallest} seeds would tell a difference of {smallest:g}")  # fmt: skip
    plan = f"; {', and '.join(plans)}" if plans else ""
    if difference.count == 1:
        plan = "; two or more would show how much chance does"
    if not comparison.verdict:
        return f"{comparison.arm} differs from {comparison.against} by {facts}."
    return f"{comparison.arm} against {comparison.against} {comparison.verdict} ({facts}){plan}."
