"""The `sstoken:` block of the YAML: its keys, their meaning, their bounds.

The field descriptions are the reference documentation: docs/configuration.md is checked against them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sstoken_plugin.selection.selectors import SELECTORS, Need, Selector

if TYPE_CHECKING:
    # Types that are made from a table are known when it runs.
    SelectorName = str
    WarmupName = str
else:
    SelectorName = Literal[tuple(SELECTORS)]
    WarmupName = Literal[tuple(name for name, row in SELECTORS.items() if row.warmup)]

# Histories that have a name, all others being paths; and those among them that follow the training.
HISTORIES = ("initial", "ema", "snapshot")
CHANGING = HISTORIES[1:]
# The value of `history_cache` that leaves it to the run.
AUTO = "auto"
_NO_FOLDERS = (AUTO, "false", "no", "off", "none", "null", "true", "yes", "on")


class SSTokenConfig(BaseModel):
    """Settings of token selection, checked before any model is loaded.

    Raises:
        pydantic.ValidationError: a value has the wrong type, lies out of its bounds or makes no sense
            beside another. `from_block` turns that into one sentence a fault, naming key and fix.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    selector: SelectorName = Field(
        default="sstoken",
        description="What ranks the response tokens: "
        + "; ".join(f"`{name}` {row.docs}" for name, row in SELECTORS.items())
        + ".",
    )
    ratio: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Fraction of each sample's response tokens that is trained on, above 0 and up to 1. "
        "A sample with n response tokens keeps ceil(ratio * n) of them, with `keep_eos` at least min(n, twice its ends "
        "of turns).",
    )
    gamma: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of REL against prompt attention in the score of `selector: sstoken`, 0 to 1.",
    )
    min_probability: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Least probability, under the model in training, of the tokens that `selector: threshold` keeps, "
        "above 0 and below 1. What is dropped is not learnt: at 0.05 clean text suffered, and long clean answers at "
        "0.01 too. Of labels and digits, where few are possible and many of them wrong, 0.05 with "
        "`warmup_ratio: 0.5` drops more of what is wrong (docs/evidence.md).",
    )
    warmup_ratio: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Fraction of the optimizer steps before REL or a threshold counts, 0 to 1; no effect with "
        "a `selector` that reads neither. Early in a run the model and its history are nearly the same and REL is "
        "noise.",
    )
    warmup_selector: WarmupName = Field(
        default="all",
        description="What selects during the warm-up, see `selector`; `attention` is what the authors' code does, and "
        "`all` learns what is to be compared (docs/evidence.md).",
    )
    attention_layer: int = Field(
        default=-1,
        description="Layer whose prompt attention is used: an index among the layers with softmax attention "
        "(those that see the whole sample, where a model mixes them with sliding windows); -1 is the last.",
    )
    history: str = Field(
        default="initial",
        min_length=1,
        description="The model that REL compares with: `initial` (the weights before this training), "
        + "".join(f"`{name}`, " for name in CHANGING)
        + "or the path of an adapter folder or a full checkpoint.",
    )
    history_ema_decay: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="Decay alpha of `history: ema`, from 0 to below 1.",
    )
    history_update_steps: int = Field(
        default=100,
        ge=1,
        description="Optimizer steps between two refreshes of `history: snapshot`, at least 1.",
    )
    history_device: Literal["auto", "model", "cpu"] = Field(
        default="auto",
        description="Where weights live that the history needs besides the model's own (docs/histories.md): `model` "
        "is the model's device; `cpu` brings them over one tensor or layer at a time; `auto` is `cpu` if they would "
        "take too much of a GPU's free memory.",
    )
    history_cache: Literal[False] | Annotated[str, Field(min_length=1)] = Field(
        default=AUTO,
        description="Where the losses of a history that does not change (`initial` or a path) are kept: `auto` is a "
        "folder of the run's own, `OUTPUT_DIR/sstoken/history`, used in runs of more than one epoch; the path of a "
        "folder is shared by all runs that name it; `false` or `null` keeps none. `axolotl sstoken-score` fills either "
        "ahead of training.",
    )
    keep_eos: bool = Field(
        default=True,
        description="Always keep the token that ends each assistant turn; it counts towards the kept tokens, and short "
        "answers keep as many others (docs/data.md). The paper has no such rule: `false` is the paper.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**32,
        description="Seed of random selection, from 0 to below 2^32; without one, the seed of the run.",
    )
    report: bool = Field(
        default=True,
        description="Write OUTPUT_DIR/sstoken/report.html at the end of training.",
    )
    report_samples: int = Field(
        default=12,
        ge=1,
        le=100,
        description="Samples that the page shows, from all over the data set, 1 to 100; fewer where `report_seconds` "
        "allows no more or they are long (docs/report.md).",
    )
    report_seconds: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds of the whole run that scoring samples for the page may take, above 0; `null` is 1 % of "
        "the run's time, or 5 seconds where that is more.",
    )
    report_upload: bool = Field(
        default=True,
        description="Give the page and a table of its tokens, both with texts of the training data, to the trackers "
        "that the run reports to (docs/report.md). Metrics and these settings go there in any case.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: Any) -> Any:
        if info.field_name == "history_cache":
            if (value is not None and not isinstance(value, str | bool)) or value in (True, ""):
                raise ValueError("write auto, the path of a folder, or false")
            # Text, where a YAML or a command line meant no folder of that name.
            if isinstance(value, str) and value != AUTO and value.strip().lower() in _NO_FOLDERS:
                raise ValueError("write auto or false, or the path of a folder, as ./NAME")
            # No value at all would be lost where a framework writes its settings anew.
            return False if value is None else value
        # pydantic reads `ratio: true` as 1.0.
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("true and false are not values of this key")
        return value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> SSTokenConfig:
        if "path" in self._needs and not self.history_is_path:
            raise ValueError(
                f"sstoken.selector: {self.selector} compares with a model that is given, and sstoken.history is "
                f"{self.history}; set sstoken.history to the path of an adapter folder or a full checkpoint."
            )
        if self.cache_folder is not None and self.history in CHANGING:
            raise ValueError(
                f"sstoken.history_cache: {self.cache_folder} keeps the losses of a history that does not change, and "
                f"sstoken.history: {self.history} does; remove history_cache, or set history: initial or a path."
            )
        return self

    @classmethod
    def from_block(cls, block: Mapping[str, Any] | SSTokenConfig | None) -> SSTokenConfig:
        """Parse the YAML block.

        Args:
            block: the value of the top-level `sstoken:` key; None (no block) means every default.

        Raises:
            ValueError: with one sentence for each fault, naming the key, the value and the fix.
        """
        if isinstance(block, SSTokenConfig):
            return block
        if block is None:
            return cls()
        if not isinstance(block, Mapping):
            raise ValueError(
                f"sstoken: {block!r} is not a block of settings; write `sstoken:` and, indented below it, lines "
                "such as `ratio: 0.6`."
            )
        try:
            return cls(**{str(key): value for key, value in block.items()})
        except ValidationError as error:
            raise ValueError(" ".join(_sentence(fault) for fault in error.errors())) from None

    @property
    def history_is_path(self) -> bool:
        """Whether the history is a model that is given, rather than this model's own past."""
        return self.history not in HISTORIES

    @property
    def cache_folder(self) -> str | None:
        """The folder that the user has named to keep losses of the history in; None if they have not."""
        return None if self.history_cache in (AUTO, False) else str(self.history_cache)

    @property
    def may_keep_losses(self) -> bool:
        """Whether a run may keep the losses that it ranks by, in a folder of its own, without being asked."""
        return self.history_cache == AUTO and self.needs_history and self.history not in CHANGING

    @property
    def needs_history(self) -> bool:
        """Whether losses of a history count in the ranking at any time."""
        return not self._needs.isdisjoint({"rel", "history"})

    @property
    def ranks_by_rel(self) -> bool:
        """Whether REL counts in the ranking at any time after the warm-up."""
        return "rel" in SELECTORS[self.selector].needs_at(self.gamma)

    @property
    def ranks_by_attention(self) -> bool:
        """Whether prompt attention counts in the ranking at any time."""
        return "attention" in self._needs

    @property
    def waits(self) -> bool:
        """Whether the selector says nothing before the model has learnt something."""
        return self.ranks_by_rel or SELECTORS[self.selector].waits

    @property
    def has_warmup(self) -> bool:
        """Whether another selector acts before this one."""
        return self.waits and self.warmup_ratio > 0

    @property
    def is_all_warmup(self) -> bool:
        """Whether `warmup_selector` acts in the whole run."""
        return self.has_warmup and self.warmup_ratio == 1

    @property
    def reads_ratio(self) -> bool:
        """Whether `ratio` says at any time how many tokens are kept."""
        return any(row.reads_ratio for row in self._active)

    @property
    def share(self) -> float | None:
        """Share of its response tokens that a sample trains on, as a mean over the steps of a run.

        It is more than `ratio` where the warm-up trains on all tokens; None where the selector does not read `ratio`.
        """
        if not SELECTORS[self.selector].reads_ratio:
            return None
        trains_on_all = self.has_warmup and SELECTORS[self.warmup_selector].keeps_all
        return round(self.ratio + self.warmup_ratio * (1 - self.ratio), 4) if trains_on_all else self.ratio

    def warmup_steps(self, steps: int) -> int:
        """Return how many optimizer steps of a run of so many come before the selector acts, if any do."""
        return math.ceil(self.warmup_ratio * steps)

    @property
    def _active(self) -> list[Selector]:
        """The selectors that rank at any time."""
        names = (self.selector, self.warmup_selector) if self.has_warmup else (self.selector,)
        return [SELECTORS[name] for name in names]

    @property
    def _needs(self) -> frozenset[Need]:
        """What counts in the ranking at any time."""
        return frozenset[Need]().union(*(row.needs_at(self.gamma) for row in self._active))

    def keys_without_effect(self) -> list[str]:
        """Sentences about settings that were changed and do nothing beside the others."""
        keeps_all = SELECTORS[self.selector].keeps_all
        read = frozenset[str]().union(*(row.reads for row in self._active))
        idle = {
            "gamma": "gamma" not in read,
            "min_probability": "min_probability" not in read,
            "warmup_ratio": not self.waits,
            "warmup_selector": not self.has_warmup,
            "attention_layer": not self.ranks_by_attention,
            "seed": "seed" not in read,
            "ratio": not self.reads_ratio,
            "history": not self.needs_history,
            "history_ema_decay": self.history != "ema",
            "history_update_steps": self.history != "snapshot",
            "history_device": not self.needs_history,
            "keep_eos": keeps_all,
        }
        sentences = []
        if self.ratio == 1 and self.reads_ratio:
            sentences.append("sstoken.ratio: 1 keeps every response token, whatever ranks them.")
        if self.is_all_warmup:
            sentences.append(
                f"sstoken.warmup_ratio: 1 leaves the whole run to warmup_selector: {self.warmup_selector}; selector: "
                f"{self.selector} never ranks."
            )
        sentences += [
            f"sstoken.{key}: {getattr(self, key)} has no effect with report: false."
            for key in ("report_samples", "report_seconds", "report_upload")
            if not self.report and self._was_changed(key)
        ]
        return sentences + [
            f"sstoken.{key}: {getattr(self, key)} has no effect with selector: {self.selector}, "
            f"warmup_ratio: {self.warmup_ratio} and history: {self.history}."
            for key, without_effect in idle.items()
            if without_effect and self._was_changed(key)
        ]

    def _was_changed(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the member of `known` that is spelt most like `word`."""
    return max(known, key=lambda name: difflib.SequenceMatcher(None, word.lower(), name).ratio())


def _share(value: Any, *, may_be_one: bool) -> str | None:
    """Return what was meant by a share of 1 in per cent or with a comma; None if that is not clear, or not allowed."""
    text = str(value).strip().replace(",", ".").replace(".nan", "nan")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    if math.isnan(number):
        return "a number such as 0.6"
    if text.endswith("%") or 2 <= number <= 100:
        number /= 100
    return f"{number:g}" if 0 < number <= 1 and number != value and (number < 1 or may_be_one) else None


def _sentence(fault: Any) -> str:
    """Turn one pydantic fault into a sentence that names the key, the value and the fix."""
    if not fault["loc"]:
        return str(fault["msg"]).removeprefix("Value error, ")
    key = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        if key == "sstoken":
            return (
                "sstoken.sstoken is not a key: the block stands inside of another; write its keys below one `sstoken:`."
            )
        # In quotes where a space or a letter that looks like another would not be seen.
        shown = f"sstoken.{key}" if re.fullmatch(r"[\w.-]+", key, re.ASCII) else f"sstoken: {key!a}"
        return f"{shown} is not a key; the nearest one is sstoken.{nearest(key, SSTokenConfig.model_fields)}."
    field = SSTokenConfig.model_fields[key]
    may_be_one = not any(hasattr(bound, "lt") for bound in field.metadata)
    if field.annotation is float and (meant := _share(fault["input"], may_be_one=may_be_one)):
        return f"sstoken.{key}: {fault['input']} is not allowed: it is a fraction of 1; write {meant}."
    reason = str(fault["msg"]).removeprefix("Value error, ")
    fix = f"remove the key for its default, {field.default!r}."
    # pydantic's reason names all values: a guess helps only where it is a good one.
    if fault["type"] == "literal_error" and (
        alike := difflib.get_close_matches(str(fault["input"]).lower(), get_args(field.annotation), 1, 0.7)
    ):
        fix = f"did you mean '{alike[0]}'?"
    return f"sstoken.{key}: {fault['input']!r} is not allowed: {reason}; {fix}"
