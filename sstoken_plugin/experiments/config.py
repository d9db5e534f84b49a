"""The YAML of an experiment: what is trained, how often, and what it is measured by; checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.base.files import expand
from sstoken_plugin.experiments.yaml_file import read_mapping
from sstoken_plugin.selection.config import SSTokenConfig, nearest

M = TypeVar("M", bound=BaseModel)

# Arms that others are compared with where the YAML does not say.
BASELINES = ("all", "random")
# What every experiment measures beside its arms.
UNTRAINED = "untrained"
# Of folders and of keys in tables.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")
_Positive = Annotated[int, Field(ge=1)]
# Of an experiment: many more than anybody will train.
MOST_SEEDS = 1000


def _have_paths(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for place, entry in enumerate(entries, 1):
        if not isinstance(entry.get("path"), str):
            raise ValueError(f"entry {place} has no `path:`, a file or the name of a data set")
    return entries


_Entries = Annotated[list[dict[str, Any]], Field(min_length=1), AfterValidator(_have_paths)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LossEvaluation(_Block):
    """Mean loss of held-out response tokens, all and by kind.

    Attributes:
        datasets: entries as in Axolotl's `datasets:`; None is the base's own evaluation set.
        samples: at most so many, the first.
    """

    kind: Literal["loss"] = "loss"
    datasets: _Entries | None = None
    samples: _Positive | None = None


class ForgettingEvaluation(_Block):
    """The same loss on data that the training should not change; see `LossEvaluation`."""

    kind: Literal["forgetting"] = "forgetting"
    datasets: _Entries
    samples: _Positive | None = None


class AnswersEvaluation(_Block):
    """Greedy answers to the last turn of held-out samples.

    Attributes:
        datasets: see `LossEvaluation`.
        samples: at most so many, the first.
        max_new_tokens: longest answer.
        batch_size: prompts of a batch.
        extract: a regular expression whose last match is the answer proper, its first group if it has one; both the
            reference and the answer are searched. None compares them whole.
    """

    kind: Literal["answers"] = "answers"
    datasets: _Entries | None = None
    samples: _Positive = 100
    max_new_tokens: _Positive = 128
    batch_size: _Positive = 8
    extract: str | None = None

    @field_validator("extract")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"it is no regular expression ({error})") from error
        return value


class TasksEvaluation(_Block):
    """Tasks of lm-evaluation-harness, by their names there.

    Attributes:
        tasks: names.
        limit: at most so many samples of each.
        few_shot: examples in each prompt; None leaves it to the task.
        batch_size: samples of a batch.
    """

    kind: Literal["lm_eval"] = "lm_eval"
    tasks: list[str] = Field(min_length=1)
    limit: _Positive | None = None
    few_shot: Annotated[int, Field(ge=0)] | None = None
    batch_size: _Positive = 8


Evaluation = LossEvaluation | ForgettingEvaluation | AnswersEvaluation | TasksEvaluation
KINDS: dict[str, type[Evaluation]] = {
    "loss": LossEvaluation,
    "forgetting": ForgettingEvaluation,
    "answers": AnswersEvaluation,
    "lm_eval": TasksEvaluation,
}


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: of its folder and in tables.
        sstoken: its `sstoken:` block; None is plain training.
        changes: other keys of the YAML and their values.
    """

    name: str
    sstoken: Mapping[str, Any] | None
    changes: Mapping[str, Any] = field(default_factory=dict)


class _Raw(_Block):
    """The keys of an experiment as the YAML has them."""

    base: str | dict[str, Any]
    changes: dict[str, Any] = {}
    out: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
    arms: dict[str, Any] = Field(min_length=1)
    seeds: (
        Annotated[int, Field(ge=1, le=MOST_SEEDS)]
        | Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=MOST_SEEDS)]
    ) = 3
    evaluations: dict[str, Any] = Field(default={"held_out": {"kind": "loss"}}, min_length=1)
    against: Annotated[list[str], Field(min_length=1)] | None = None
    smallest_difference: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    keep_models: bool = False

    @field_validator("seeds", mode="before")
    @classmethod
    def _is_count_or_list(cls, value: Any) -> Any:
        if not isinstance(value, int | list):
            raise ValueError("a whole number says how many seeds, a list which, as in [1, 2]")
        return value


class _RawArm(_Block):
    sstoken: dict[str, Any] | None = None
    changes: dict[str, Any] = {}


@dataclass(frozen=True)
class Experiment:
    """A whole experiment, checked.

    Attributes:
        base: the Axolotl YAML that every arm starts from, with the changes that hold for all.
        out: folder of all results.
        arms: in the order of the YAML.
        seeds: of the trainings.
        evaluations: by name; the first loss decides.
        against: names of the arms that others are compared with.
        smallest_difference: of the deciding measure, that anybody would care about: for the number of seeds to tell it.
        checkpoint_minutes: a killed run loses at most so much.
        keep_models: whether trained weights stay when their run is evaluated.
        changes: keys of the base that are others in this experiment.
    """

    base: Mapping[str, Any]
    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    evaluations: Mapping[str, Evaluation]
    against: tuple[str, ...]
    smallest_difference: float = 0.01
    checkpoint_minutes: float = 5.0
    keep_models: bool = False
    changes: tuple[str, ...] = ()


def read(file: Path) -> Experiment:
    """Read and check the YAML of an experiment.

    Raises:
        ValueError: one sentence that names the key and the fix.
    """
    return parse(read_mapping(file, "an experiment's YAML has keys such as `base:` and `arms:`"), str(file))


def parse(block: Mapping[str, Any], place: str = "the experiment") -> Experiment:
    """Check an experiment, see `read`."""
    raw = checked(_Raw, block, "")
    base = raw.base
    if isinstance(base, str):
        base = read_mapping(
            expand(base), "base names an Axolotl YAML, which has lines such as `base_model: FOLDER`", "base: "
        )
    _refuse_without_effect(raw.changes, "changes")
    base = {**base, **raw.changes}
    if not base.get("base_model"):
        raise ValueError(f"base: the YAML that {place} starts from has no `base_model:`; add it.")
    arms = tuple(_arm(name, value) for name, value in raw.arms.items())
    if any(arm.name.lower() == UNTRAINED for arm in arms):
        raise ValueError(
            f"arms: {UNTRAINED} is the model before training, which is measured anyway; name the arm otherwise."
        )
    _refuse_alike("arms", [arm.name for arm in arms])
    seeds = tuple(range(1, raw.seeds + 1)) if isinstance(raw.seeds, int) else tuple(raw.seeds)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: {list(seeds)} names a seed twice; each counts once: remove one.")
    evaluations = {_name("evaluations", name): _evaluation(name, value) for name, value in raw.evaluations.items()}
    _refuse_alike("evaluations", list(evaluations))
    names = [arm.name for arm in arms]
    for name in raw.against or ():
        if name not in names:
            raise ValueError(f"against: {name} is no arm; the nearest one is {nearest(name, names)}.")
    against = raw.against
    if against is None:
        against = [name for name in BASELINES if name in names] or names[:1]
    return Experiment(
        base=base,
        out=expand(raw.out),
        arms=arms,
        seeds=seeds,
        evaluations=evaluations,
        against=tuple(dict.fromkeys(against)),
        smallest_difference=raw.smallest_difference,
        checkpoint_minutes=raw.checkpoint_minutes,
        keep_models=raw.keep_models,
        changes=tuple(raw.changes),
    )


def checked(model: type[M], block: Any, place: str) -> M:
    """Return a block of the YAML as a record.

    Args:
        model: the record.
        block: what the YAML has.
        place: key that it stands at; "" is the whole file.

    Raises:
        ValueError: one sentence for each fault.
    """
    if not isinstance(block, Mapping):
        keys = ", ".join(model.model_fields)
        raise ValueError(f"{place}: {block!r} is not a block of settings; indented below it, write keys of: {keys}.")
    try:
        return model.model_validate({str(key): value for key, value in block.items()})
    except ValidationError as error:
        # Of a key that may be a list or not, both say what is wrong with it: the one that was written counts.
        faults = sorted(error.errors(), key=lambda fault: not _is_of_a_list(fault, block))
        first = {fault["loc"][:1]: fault for fault in reversed(faults)}
        raise ValueError(" ".join(_sentence(fault, model, place) for fault in reversed(first.values()))) from None


def _is_of_a_list(fault: Any, block: Mapping[str, Any]) -> bool:
    key, *inner = fault["loc"]
    return isinstance(block.get(key), list) and bool(inner) and str(inner[0]).startswith("list")


def _sentence(fault: Any, model: type[BaseModel], place: str) -> str:
    names = [str(part) for part in fault["loc"]]
    key = ".".join(filter(None, [place, *names[:1]]))
    if fault["type"] == "extra_forbidden":
        around = f"{place}." if place else ""
        return f"{key} is not a key; the nearest one is {around}{nearest(names[0], model.model_fields)}."
    if fault["type"] == "missing":
        return f"{key} is missing; add it."
    reason = str(fault["msg"]).removeprefix("Value error, ")
    is_needed = model.model_fields[names[0]].is_required()
    fix = "write another value" if is_needed else "write another value, or remove the key for its default"
    return f"{key}: {fault['input']!r} is not allowed: {reason}; {fix}."


def _arm(name: str, value: Any) -> Arm:
    _name("arms", name)
    place = f"arms.{name}"
    if value is None:
        return Arm(name, None)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{place}: {value!r} is not a block of settings; write keys of the `sstoken:` block, as in "
            f"`{name}: {{selector: random}}`, or null for plain training."
        )
    # Neither is a key of the `sstoken:` block.
    if not {"sstoken", "changes"} & value.keys():
        value = {"sstoken": value}
    raw = checked(_RawArm, value, place)
    if raw.sstoken is not None:
        try:
            SSTokenConfig.from_block(raw.sstoken)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    _refuse_without_effect(raw.changes, f"{place}.changes", ("plugins", "seed"))
    return Arm(name, raw.sstoken, raw.changes)


def _refuse_without_effect(keys: Iterable[str], place: str, others: tuple[str, ...] = ()) -> None:
    for key in keys:
        if key in others or axolotl.has_no_effect(key):
            raise ValueError(f"{place}.{key} is set by the experiment itself; remove it there.")


def _evaluation(name: str, value: Any) -> Evaluation:
    place = f"evaluations.{name}"
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        meant = f"; did you mean {nearest(str(kind), KINDS)}?" if kind else "."
        raise ValueError(f"{place}: give it a `kind:`, one of {', '.join(KINDS)}{meant}")
    return checked(KINDS[kind], value, place)


def _name(key: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{key}: {name!r} is no name; it names folders: write letters, digits and _ . + -, at most 60, in quotes "
            "where YAML would read something else."
        )
    return name


def _refuse_alike(key: str, names: list[str]) -> None:
    """Refuse names that would be one folder where a file system does not tell capitals apart."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(f"{key}: {other} and {name} differ in capitals alone; name one of them otherwise.")
