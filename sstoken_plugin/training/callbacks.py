"""What happens at moments of a training run, beside the steps themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from sstoken_plugin.base.logs import SHOWN, logger
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.report import token_table
from sstoken_plugin.report.assembly import report_of, write_page
from sstoken_plugin.report.breakdown import Table
from sstoken_plugin.report.trajectory import Trajectory
from sstoken_plugin.training.trainer import TokenSelectionTrainer

LOG = logger(__name__)
INFO = logger(SHOWN)


class HistoryCallback(TrainerCallback):
    """Keeps the history in step with the training."""

    def __init__(self, trainer: TokenSelectionTrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin or resume: the weights of a checkpoint are loaded by now."""
        self._trainer.begin_selection()
        self._trainer.resume_selection()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the history the new weights, unless overflow made the optimizer skip its step.

        Raises:
            RuntimeError: the step was not computed by the selection.
        """
        trainer = self._trainer
        trainer.refuse_if_bypassed()
        history = None if trainer.selection is None else trainer.selection.history_model
        if history is not None and not trainer.accelerator.optimizer_step_was_skipped:
            history.after_step(trainer.model, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write losses that wait to be written."""
        self._flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write losses that wait to be written."""
        self._flush()

    def _flush(self) -> None:
        losses = self._trainer.selection.history if self._trainer.selection is not None else None
        if losses is not None and losses.store is not None:
            losses.store.flush()


class ReportCallback(TrainerCallback):
    """Scores samples during the training and writes OUTPUT_DIR/sstoken/report.html when it ends.

    Every rank takes part. The trained weights are not saved yet at any of these moments: no picture is worth losing
    them, so that what fails here is said and left out. What ranks do together is not done where errors are swallowed:
    a rank that failed would leave the others waiting.
    """

    def __init__(self, trainer: TokenSelectionTrainer, trajectory: Trajectory):
        self._trainer = trainer
        self._trajectory = trajectory
        self._finished = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say where the page will be."""
        if not state.is_world_process_zero:
            return
        try:
            _file(args).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            LOG.warning("ssToken: output_dir: there will be no page, because its folder cannot be made (%s).",
                        in_short(error))  # fmt: skip
        else:
            INFO.info("ssToken: what is selected will be shown in %s.", _file(args))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score samples at planned moments, and after the last step while trackers still listen."""
        if state.global_step >= state.max_steps:
            self._finish(state)
        else:
            self._trajectory.after_step(state.global_step, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the page."""
        self._finish(state)
        counts = self._trainer.counts_of_kept()
        if state.is_world_process_zero:
            file = _file(args)
            _attempt(f"{file} was not written", lambda: self._draw(file, state, counts))

    def _finish(self, state: Any) -> None:
        if self._finished:
            return
        self._finished = True
        self._trajectory.finish(state.global_step, state.max_steps)
        if state.is_world_process_zero and self._trajectory.moments:
            callbacks, records = self._trainer.callback_handler.callbacks, self._trajectory.moments[-1].records
            _attempt("no table of tokens was logged", lambda: token_table.send(callbacks, records, state.global_step))

    def _draw(self, file: Path, state: Any, counts: Tensor | None) -> None:
        trainer = self._trainer
        assert trainer.selection is not None
        tables: list[Table] = []
        if (kept := trainer.kept_counts) is not None and counts is not None:
            _attempt("the page has no tables", lambda: tables.extend(kept.tables(counts)))
        moments, tokenizer = self._trajectory.moments, trainer.processing_class
        log, warnings = state.log_history, trainer.selection_warnings
        write_page(file, report_of(trainer.selection, tokenizer, moments, tables, log, warnings))
        INFO.info("ssToken: what was selected is shown in %s.", file)


def _file(args: Any) -> Path:
    return Path(args.output_dir) / "sstoken" / "report.html"


def _attempt(what: str, work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        LOG.warning("ssToken: %s: %s: %s", what, type(error).__name__, error)
