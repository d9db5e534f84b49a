"""What a run will do and cost, as far as that can be told before its first step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from sstoken_plugin.base.attempt import attempt
from sstoken_plugin.base.logs import announce
from sstoken_plugin.base.numbers import counted, percent
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.build import memory_in_training
from sstoken_plugin.training.sampling import EVERY
from sstoken_plugin.training.survey import Survey

# Kind of device, and what trains, to the time of a step without a pass of the history and with one, each the lowest and
# the highest median of what was measured, in plain steps: docs/performance.md, "The rule of the plan".
MEASURED = {
    ("cpu", "adapter"): ((0.77, 1.00), (1.17, 1.41)),
    ("cpu", "full"): ((0.86, 1.07), (1.14, 1.21)),
    ("cuda", "adapter"): ((0.99, 1.20), (1.18, 1.41)),
    ("cuda", "full"): ((1.16, 1.16), (1.44, 1.44)),
}
# Of losses that are kept, a response token and a sample, before compression: docs/histories.md.
TOKEN_BYTES, SAMPLE_BYTES = 2.25, 12


@dataclass(frozen=True)
class Schedule:
    """How long a run is.

    Attributes:
        steps: its optimizer steps.
        epochs: how often it goes through the data.
    """

    steps: int
    epochs: float


@dataclass(frozen=True)
class Plan:
    """See the top of this file.

    Attributes:
        samples: samples with a response.
        tokens: tokens of the data set.
        response: response tokens of all samples.
        kept: those of them that an epoch after the warm-up trains on; None where a threshold decides.
        least: probability from which on a threshold keeps a token, 0 to 1.
        about: whether these numbers are those of rows all over a large data set, scaled up.
        schedule: how long the run is.
        warmup: optimizer steps of the selection's warm-up.
        warmup_keeps: what it trains on, where that is not what is `kept`: "all", "others"; else "".
        history: value of `sstoken.history`; "" if REL is not measured.
        memory: bytes that the history adds.
        store: where losses are kept; "" if they are not.
        passes: forward passes of the history, of as many samples as the run has in all its epochs.
        time: of the steps, in those of plain training, the lowest and the highest; None where nothing was measured.
        kind: what the time was measured on: "cpu, adapter".
    """

    samples: int
    tokens: int
    response: int
    kept: int | None
    least: float
    about: bool
    schedule: Schedule
    warmup: int
    warmup_keeps: str
    history: str
    memory: int
    store: str
    passes: float
    time: tuple[float, float] | None
    kind: str

    def parts(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each part, and what is to be said of it."""
        about = "about " if self.about else ""
        share = self.response / max(self.tokens, 1)
        counts = f"{about}{counted(self.samples, 'sample')}, {counted(self.response, 'response token')}"
        yield "data", f"{counts} ({percent(share)} of {self.tokens:,})"
        yield "kept", self._of_kept(about)
        # Of a large data set a run may see so little that one digit behind the point would be 0.
        epochs = f"{self.schedule.epochs:{'.1f' if self.schedule.epochs >= 1 else '.1g'}}".removesuffix(".0")
        warmup = f", {self.warmup:,} of them the selection's warm-up" if self.warmup else ""
        yield "steps", f"{self.schedule.steps:,}, {epochs} epoch{'s' if epochs != '1' else ''}{warmup}"
        yield "history", self._of_history()
        yield "time", self._of_time()

    def _of_kept(self, about: str) -> str:
        kept = f"what has a probability of {self.least:.3g} or more"
        if self.kept is not None:
            kept = f"{about}{self.kept:,} response tokens, {percent(self.kept / max(self.response, 1), 1)}"
        first = {"": "", "all": "all in the warm-up, then ", "others": "after the warm-up "}
        return first[self.warmup_keeps] + kept

    def _of_time(self) -> str:
        if self.time is None:
            return f"nothing was measured on a device of this kind ({self.kind})"
        low, high = self.time
        return f"{low:.2f} to {high:.2f} of plain training's steps, by docs/performance.md ({self.kind})"

    def _of_history(self) -> str:
        if not self.history:
            return "none"
        memory = f"{self.memory / 2**20:.1f} MiB of memory" if self.memory else "no memory"
        kept = "its losses are not kept"
        if self.store:
            size = (TOKEN_BYTES * self.response + SAMPLE_BYTES * self.samples) / 2**20
            kept = f"its losses are kept in {self.store}, {size:.1f} MiB at most"
        return f"{self.history}, {memory}; {kept}; a forward pass of it in {percent(self.passes)} of the micro-batches"

    def sentence(self) -> str:
        """Return all of it in one line."""
        return f"ssToken plan: {'; '.join(f'{name}: {words}' for name, words in self.parts())}."


def plan_of(selection: TokenSelection, model: Any, survey: Survey, schedule: Schedule, store: str) -> Plan:
    """Return the plan of a run.

    Args:
        selection: what selects.
        model: the unwrapped model in training.
        survey: of its data.
        schedule: how long it is.
        store: where losses of the history are kept, in words; "" if they are not.
    """
    config, losses, scale = selection.config, selection.history, survey.scale
    phase, in_warmup = Phase.of(config), Phase.of(config, in_warmup=True)
    kept = survey.kept(config)
    warmup = config.warmup_steps(schedule.steps) if config.has_warmup else 0
    share = warmup / max(schedule.steps, 1)
    passes = 0.0
    # Where a cache has all losses, no model is held.
    if losses is not None and losses.history is not None:
        passes = _passes(phase, share, schedule.epochs, keeps=bool(store))
    kind = (model.device.type, "adapter" if isinstance(model, PeftModel) else "full")
    return Plan(
        samples=round(len(survey.lengths) * scale),
        tokens=round(survey.tokens * scale),
        response=round(int(survey.lengths.sum()) * scale),
        kept=None if kept is None else round(int(kept.sum()) * scale),
        least=config.min_probability,
        about=scale > 1,
        schedule=schedule,
        warmup=warmup,
        warmup_keeps=_other_share(in_warmup, phase) if warmup else "",
        history="" if losses is None else config.history,
        memory=0 if losses is None or losses.history is None else memory_in_training(losses.history, model),
        store=store,
        passes=passes,
        time=_time(kind, passes, plain=share if in_warmup.keeps_everything else 0.0),
        kind=", ".join(kind),
    )


def _passes(phase: Phase, warmup: float, epochs: float, *, keeps: bool) -> float:
    """Return how many passes of the history there are, of one for each sample in each epoch.

    Args:
        phase: what ranks after the warm-up.
        warmup: share of the steps in the warm-up, in which nothing ranks by the history.
        epochs: of the run.
        keeps: whether losses are kept, so that a sample needs one pass.
    """
    if not phase.reads_history:
        return 1 / EVERY
    ranked = 1 - warmup
    if keeps and epochs > 0:
        ranked = min(1.0, ranked * epochs) / epochs
    return ranked + warmup / EVERY


def _other_share(in_warmup: Phase, later: Phase) -> str:
    """Return `Plan.warmup_keeps`."""
    if (in_warmup.ratio, in_warmup.least) == (later.ratio, later.least):
        return ""
    return "all" if in_warmup.keeps_everything else "others"


def _time(kind: tuple[str, str], passes: float, *, plain: float) -> tuple[float, float] | None:
    """Return `Plan.time`.

    Args:
        kind: see `MEASURED`.
        passes: see `_passes`.
        plain: share of the steps that are those of plain training, because all is kept.
    """
    if kind not in MEASURED:
        return None
    low, high = (
        plain + (1 - plain) * without + passes * (full - without) for without, full in zip(*MEASURED[kind], strict=True)
    )
    return low, high


def schedule_of(trainer: Any) -> Schedule:
    """Return how long the training of a trainer is, once it has begun."""
    state, batches = trainer.state, trainer.sstoken.batches
    if not batches:
        return Schedule(state.max_steps, state.num_train_epochs)
    return Schedule(state.max_steps, state.max_steps / math.ceil(batches / trainer.args.gradient_accumulation_steps))


class PlanCallback(TrainerCallback):
    """Says in the log of a training what it will do and cost."""

    def __init__(self, trainer: Any):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say it; the selection has begun by now."""
        session = self._trainer.sstoken
        if not session.is_first_rank or session.survey is None:
            return
        # Other ranks are at their first step, and would wait for this one.
        attempt("there is no plan of the run", lambda: announce(self._plan(session).sentence()))

    def _plan(self, session: Any) -> Plan:
        losses = session.selection.history
        store = "" if losses is None or losses.store is None else str(losses.store.file.parent)
        return plan_of(session.selection, session.model, session.survey, schedule_of(self._trainer), store)
