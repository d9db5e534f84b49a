"""Token selection as a mixin for transformers' Trainer; it knows nothing of Axolotl."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from sstoken_plugin.base.logs import logger
from sstoken_plugin.engine.sharding import any_rank
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.report.breakdown import KeptCounts
from sstoken_plugin.report.trajectory import Trajectory, samples_mark
from sstoken_plugin.selection.samples import IGNORE_INDEX
from sstoken_plugin.selection.turns import Turns
from sstoken_plugin.training import checkpoint
from sstoken_plugin.training.checkpoint import ReportState, SelectionState
from sstoken_plugin.training.metrics import Totals, counts, ratios
from sstoken_plugin.training.monitor import SelectionMonitor

LOG = logger(__name__)


class TokenSelectionTrainer(Trainer):
    """Computes the training loss on selected tokens; evaluation stays as it is.

    As the last base class before `Trainer`, it gets the inputs as a framework's own trainer prepared them:
    `class MyTrainer(FrameworkTrainer, TokenSelectionTrainer)`.

    Attributes:
        selection: what selects; None trains on everything. Set it before `train`, or set
        make_selection: builds it when training begins.
        selection_warnings: every warning raised about the selection, in order.
        kept_counts: counts what is kept over the data; None if nobody asks.
        trajectory: scores samples at moments of the run; None if nobody asks.
    """

    selection: TokenSelection | None = None
    make_selection: Callable[[], TokenSelection] | None = None
    kept_counts: KeptCounts | None = None
    trajectory: Trajectory | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.selection_warnings: list[str] = []
        self._totals = Totals()
        self._monitor = SelectionMonitor()
        self._phase: Phase | None = None
        self._scored = False
        self._resumes_from: Path | None = None

    @property
    def selection_phase(self) -> Phase:
        """What ranks tokens in the optimizer step under way."""
        assert self.selection is not None
        config = self.selection.config
        warmup_steps = math.ceil(config.warmup_ratio * self.state.max_steps)
        in_warmup = self.state.global_step < warmup_steps
        return Phase.of(config, in_warmup=in_warmup, draw=int(self.state.epoch or 0))

    def refuse_if_bypassed(self) -> None:
        """Stop a run whose last step did not come to `compute_loss`, and so trained on everything.

        Raises:
            RuntimeError: see there.
        """
        if self.selection is not None and not self._scored:
            raise RuntimeError(
                f"plugins: {type(self).__name__} computed the loss of a step without sstoken, so that nothing was "
                "selected; remove the key or the plugin that brings a loss or a trainer of its own, or sstoken."
            )
        self._scored = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of the kept tokens in training, and the ordinary loss in evaluation."""
        if self.selection is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._refuse_other_loss()
        self._phase = self.selection_phase
        step = self.selection.begin(self.model, inputs, self._phase)

        def loss_of_step(*args: Any, **kwargs: Any) -> Tensor:
            self._scored = True
            return step.loss(*args, **kwargs)

        # Trainer pops the labels and hands outputs to this function: no fused loss, no second forward pass.
        # It must not stay set, because Trainer then normalises losses in another way.
        self.compute_loss_func = loss_of_step
        self._scored = False
        try:
            with step.observed():
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        except Exception:
            if "labels" in inputs:
                # Whoever computes the loss in Trainer's place did not take them out.
                self.refuse_if_bypassed()
            raise
        finally:
            self.compute_loss_func = None
        if not self._scored:
            self.refuse_if_bypassed()
        self._totals.add(counts(step))
        if self.kept_counts is not None:
            self.kept_counts.add(step)
        return loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """Collect the batches of an optimizer step, and count kept tokens where Trainer counts labels."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if items is None or self.selection is None or self.selection_phase.keeps_everything:
            return batches, items
        # k follows from the labels alone, so stand-in labels with k tokens a sample let Trainer's own
        # counting, over accumulation and ranks, do the rest.
        stand_ins = [{"labels": _labels_to_count(self.selection, batch, self.selection_phase)} for batch in batches]
        _, items = super().get_batch_samples(iter(stand_ins), len(stand_ins), device)
        return batches, items

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the metrics of the selection to every training log line."""
        if self.selection is not None and "loss" in logs:
            total = self._totals.take(self._sum_over_ranks)
            logs.update({name: round(value, 5) for name, value in ratios(total).items()})
            if self._phase is not None:
                self._warn(self._monitor.observe(self._phase.rule, total))
        super().log(logs, *args, **kwargs)

    def begin_selection(self) -> None:
        """Build the selection, at most once: the weights are the first ones, and sharded if they ever will be.

        Raises:
            ValueError: the trainer was given a loss of its own, which the selection would replace.
        """
        if self.selection is None and self.make_selection is not None:
            self._refuse_other_loss()
            self.selection = self.make_selection()

    def _refuse_other_loss(self) -> None:
        if self.compute_loss_func is not None:
            name = getattr(self.compute_loss_func, "__name__", type(self.compute_loss_func).__name__)
            raise ValueError(
                f"compute_loss_func: the trainer was given a loss of its own, {name}, in place of which sstoken "
                "would compute its own; remove the key or the plugin that sets it, or sstoken."
            )

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.begin_selection()
        super()._load_from_checkpoint(*args, **kwargs)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see transformers' `Trainer.train`."""
        last = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self._resumes_from = Path(last) if last else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        # First, because Trainer's own state, without which no run resumes, is the last file of a checkpoint.
        if self.selection is not None:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            state = self._selection_state(self.selection)
            if self.args.should_save:
                mark = checkpoint.new_mark()
                faults = checkpoint.write(folder, state, mark)
                if faults:
                    self._warn([f"ssToken: {folder} is without {', '.join(faults)}."])
                states: Any = self.state.stateful_callbacks
                states[checkpoint.FOLDER] = mark
        super()._save_checkpoint(model, trial, *args, **kwargs)

    def _selection_state(self, selection: TokenSelection) -> SelectionState:
        history = selection.history_model
        tensors = {}
        for name, tensor in () if history is None else history.tensors(self.model):
            if self.args.should_save:
                tensors[name] = tensor.cpu()
        return SelectionState(
            history=selection.config.history,
            totals=self._totals.peek(self._sum_over_ranks),
            monitor=self._monitor.state(),
            warnings=self.selection_warnings,
            digest=None if history is None else history.digest(self.model),
            tensors=tensors,
            report=self._report_state(),
        )

    def _report_state(self) -> ReportState | None:
        if self.kept_counts is None or self.trajectory is None:
            return None
        return ReportState(self.trajectory.moments, self.kept_counts.rule, self.counts_of_kept())

    def resume_selection(self) -> None:
        """Take over the state of the checkpoint that this run resumes from, once its weights are loaded.

        What cannot be read on one rank is taken over on none.
        """
        if self.selection is None or self._resumes_from is None:
            return
        state, reason = None, "another rank could not read it"
        try:
            state = checkpoint.read(self._resumes_from)
            reason = "it was made without the plugin" if state is None else reason
        except ValueError as error:
            reason = str(error)
        if self.any_rank(state is None):
            assumed = self._restart_history()
            self._warn(
                [f"ssToken: {self._resumes_from} does not hold the state of this selection ({reason}): {assumed}, and "
                 "metrics and warnings begin anew."]
            )  # fmt: skip
            return
        assert state is not None
        found = [*state.faults, *self._resume_metrics(state), *self._resume_report(state)]
        told = self._resume_history(state)
        self.selection_warnings[:0] = state.warnings or []
        if found:
            self._warn([f"ssToken: {self._resumes_from} holds parts that cannot be read, and begin anew: "
                        f"{', '.join(found)}."])  # fmt: skip
        self._warn(told)

    def _resume_history(self, state: SelectionState) -> list[str]:
        """Take over the history; return a sentence where it is not the one of the resumed run."""
        assert self.selection is not None
        history = self.selection.history_model
        if history is None:
            return []
        reason = ""
        try:
            if state.lost_history:
                raise ValueError(state.lost_history)
            if state.history not in (None, self.selection.config.history):
                raise ValueError(f"it was made with sstoken.history: {state.history}")
            history.restore(state.tensors, self.model)
        except ValueError as error:
            reason = str(error)
        if self.any_rank(bool(reason)):
            assumed = self._restart_history()
            reason = reason or "another rank could not read it"
            return [f"ssToken: {self._resumes_from} does not hold the history of this selection ({reason}): {assumed}."]
        own = history.digest(self.model)
        if self.any_rank(state.digest not in (None, own)):
            return ["ssToken: the weights before training are not those that the resumed run had; REL compares with "
                    "base_model as it is now."]  # fmt: skip
        return []

    def _restart_history(self) -> str:
        """Let a history begin anew where a checkpoint says nothing; return what is assumed, in words."""
        assert self.selection is not None
        history = self.selection.history_model
        if history is None or not history.changes:
            return "the history is the one that a new run would have"
        history.restart(self.model)
        return "the history begins anew at the weights of the checkpoint"

    def _resume_metrics(self, state: SelectionState) -> list[str]:
        found = []
        try:
            if state.monitor is not None:
                self._monitor.restore(state.monitor)
        except ValueError as error:
            found.append(f"what is watched for warnings ({error})")
        if state.totals is not None and self.args.process_index == 0:
            self._totals.restore(state.totals, self.args.device)
        return found

    def _resume_report(self, state: SelectionState) -> list[str]:
        """Take over what is only for the page."""
        if self.kept_counts is None or self.trajectory is None:
            return []
        # Every rank comes to the question below, whatever it could read.
        report = state.report or ReportState(None, None, None)
        found = []
        # Ranks that score other samples than others, as from folders of their own, would wait for each other.
        own = samples_mark(report.moments or [])
        first = self.of_first_rank(own)
        if not self.any_rank(report.moments is None or own != first):
            self.trajectory.moments = list(report.moments or [])
        elif report.moments:
            found.append("the page's samples (another rank could not read them, or has others)")
        is_first = self.args.process_index == 0
        try:
            if report.counts is not None:
                self.kept_counts.restore(report.rule, report.counts if is_first else torch.zeros_like(report.counts))
        except ValueError as error:
            found.append(f"the page's tables ({error})")
        return found

    def _sum_over_ranks(self, vector: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return vector
        return self.accelerator.reduce(vector.to(self.args.device), reduction="sum")

    def of_first_rank(self, value: float) -> float:
        """Return what the first rank gives; every rank must call this."""
        own = value if self.args.process_index == 0 else 0.0
        return self._sum_over_ranks(torch.tensor([own], dtype=torch.float64)).item()

    def any_rank(self, flag: bool) -> bool:
        """Tell whether `flag` is set on any rank; every rank must call this."""
        return any_rank(flag, self.args.device)

    def counts_of_kept(self) -> Tensor | None:
        """Return counts of what was kept over the data, see `KeptCounts`; every rank must call this.

        None, on every rank, where nobody asks for them or counting has failed on any.
        """
        if self.kept_counts is None or self.any_rank(self.kept_counts.failed):
            return None
        return self._sum_over_ranks(self.kept_counts.counts.double()).long().cpu()

    def _warn(self, warnings: list[str]) -> None:
        self.selection_warnings += warnings
        if self.is_world_process_zero():
            for warning in warnings:
                LOG.warning(warning)


def _labels_to_count(selection: TokenSelection, batch: dict[str, Tensor], phase: Phase) -> Tensor:
    layout = phase.layout(batch)
    turns = Turns.of(batch, layout, selection.end_tokens)
    counted = layout.index_in_sample < selection.kept_per_sample(layout, turns, phase.ratio)[layout.sample]
    labels = torch.full_like(batch["labels"], IGNORE_INDEX)
    labels.view(-1)[layout.position[counted]] = 0
    return labels
