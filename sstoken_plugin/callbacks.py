"""What happens at moments of a training run, beside the steps themselves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sstoken_plugin.inspection import inspect_samples
from sstoken_plugin.report import Moment, Report, render
from sstoken_plugin.setup import describe, describe_history, versions
from sstoken_plugin.step import Phase
from sstoken_plugin.trainer import TokenSelectionTrainer

LOG = logging.getLogger(__name__)

# Samples on the page, from the first of the data set.
REPORT_SAMPLES = 8


class HistoryCallback(TrainerCallback):
    """Keeps the history in step with the training."""

    def __init__(self, trainer: TokenSelectionTrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin or resume: the weights of a checkpoint are loaded by now."""
        self._trainer.begin_selection()
        self._trainer.resume_selection()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the history the new weights, unless overflow made the optimizer skip its step."""
        trainer = self._trainer
        losses = trainer.selection.history if trainer.selection is not None else None
        history = None if losses is None else losses.history
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
    """Writes OUTPUT_DIR/sstoken/report.html when training ends."""

    def __init__(self, trainer: TokenSelectionTrainer):
        self._trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score a few samples with the trained model and draw the page; every rank takes part."""
        trainer = self._trainer
        assert trainer.selection is not None
        file = Path(args.output_dir) / "sstoken" / "report.html"
        try:
            data: Any = trainer.train_dataset
            samples = data.select(range(min(REPORT_SAMPLES, len(data))))
            model = trainer.model
            phase = Phase.of(trainer.selection.config)
            records = list(inspect_samples(trainer.selection, model, samples, phase, trainer.processing_class))
            if state.is_world_process_zero:
                selection = trainer.selection
                page = render(
                    Report(
                        sentence=describe(selection, trainer.processing_class),
                        settings=selection.config.model_dump(),
                        versions=versions(),
                        history=describe_history(selection),
                        moments=[Moment(f"step {state.global_step}", phase.rule, phase.gamma, phase.ratio, records)],
                        end_tokens=selection.end_tokens if selection.config.keep_eos else (),
                        log=state.log_history,
                        warnings=trainer.selection_warnings,
                    )
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(page, encoding="utf-8")
        except Exception as error:
            # The trained weights are not saved yet: no picture is worth losing them.
            LOG.warning("ssToken: %s was not written: %s: %s", file, type(error).__name__, error)
