"""Token selection as a mixin for transformers' Trainer; it knows nothing of Axolotl."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from sstoken_plugin import checkpoint
from sstoken_plugin.breakdown import KeptCounts, Table
from sstoken_plugin.checkpoint import ReportState, SelectionState
from sstoken_plugin.metrics import Totals, counts, ratios
from sstoken_plugin.monitor import SelectionMonitor
from sstoken_plugin.report import Moment
from sstoken_plugin.samples import IGNORE_INDEX
from sstoken_plugin.step import Phase, TokenSelection
from sstoken_plugin.trajectory import Trajectory
from sstoken_plugin.turns import Turns

LOG = logging.getLogger(__name__)


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
        """Stop a run whose steps do not come to `compute_loss`, and so train on everything.

        Raises:
            RuntimeError: no step was scored yet.
        """
        if self.selection is not None and self._phase is None:
            raise RuntimeError(
                f"plugins: {type(self).__name__} computed the loss of the first step without sstoken, so that nothing "
                "was selected; remove the key or the plugin that brings a loss or a trainer of its own, or sstoken."
            )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of the kept tokens in training, and the ordinary loss in evaluation."""
        if self.selection is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._phase = self.selection_phase
        step = self.selection.begin(self.model, inputs, self._phase)
        # Trainer pops the labels and hands outputs to this function: no fused loss, no second forward pass.
        # It must not stay set, because Trainer then normalises losses in another way.
        self.compute_loss_func = step.loss
        try:
            with step.observed():
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.compute_loss_func = None
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
            if self.compute_loss_func is not None:
                name = getattr(self.compute_loss_func, "__name__", type(self.compute_loss_func).__name__)
                raise ValueError(
                    f"compute_loss_func: the trainer was given a loss of its own, {name}, in place of which sstoken "
                    "would compute its own; remove the key or the plugin that sets it, or sstoken."
                )
            self.selection = self.make_selection()

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
                checkpoint.write(folder, state)
        super()._save_checkpoint(model, trial, *args, **kwargs)

    def _selection_state(self, selection: TokenSelection) -> SelectionState:
        history = None if selection.history is None else selection.history.history
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
        counted = self.kept_counts.peek(self._sum_over_ranks)
        return ReportState([vars(moment) for moment in self.trajectory.moments], self.kept_counts.rule, counted)

    def resume_selection(self) -> None:
        """Take over the state of the checkpoint that this run resumes from, once its weights are loaded."""
        if self.selection is None or self._resumes_from is None:
            return
        history = None if self.selection.history is None else self.selection.history.history
        try:
            state = checkpoint.read(self._resumes_from)
            if state is None:
                raise ValueError("it was made without the plugin")
            if state.history != self.selection.config.history:
                raise ValueError(f"it was made with sstoken.history: {state.history}")
            if history is not None:
                history.restore(state.tensors, self.model)
        except ValueError as reason:
            assumed = "the history is the one that a new run would have"
            if history is not None and history.changes:
                history.restart(self.model)
                assumed = "the history begins anew at the weights of the checkpoint"
            self._warn(
                [f"ssToken: {self._resumes_from} does not hold the state of this selection ({reason}): {assumed}, and "
                 "metrics and warnings begin anew."]
            )  # fmt: skip
            return
        if history is not None and state.digest not in (None, history.digest(self.model)):
            self._warn(
                ["ssToken: the weights before training are not those that the resumed run had; REL compares with "
                 "base_model as it is now."]
            )  # fmt: skip
        self._monitor.restore(state.monitor)
        self.selection_warnings[:0] = state.warnings
        is_first = self.args.process_index == 0
        if is_first:
            self._totals.restore(state.totals, self.args.device)
        if state.report is not None and self.kept_counts is not None and self.trajectory is not None:
            self.trajectory.moments = [Moment(**moment) for moment in state.report.moments]
            counted = state.report.counts
            self.kept_counts.restore(state.report.rule, counted if is_first else torch.zeros_like(counted))

    def _sum_over_ranks(self, vector: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return vector
        return self.accelerator.reduce(vector.to(self.args.device), reduction="sum")

    def of_first_rank(self, value: float) -> float:
        """Return what the first rank gives; every rank must call this."""
        own = value if self.args.process_index == 0 else 0.0
        return self._sum_over_ranks(torch.tensor([own], dtype=torch.float64)).item()

    def tables_of_kept(self) -> list[Table]:
        """Return tables of what was kept over the data, see `KeptCounts.tables`; every rank must call this."""
        if self.kept_counts is None:
            return []
        return self.kept_counts.tables(self.kept_counts.peek(self._sum_over_ranks))

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
