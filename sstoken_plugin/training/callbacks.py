"""What the selection does at moments of a training run, beside the steps themselves."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from sstoken_plugin.base.logs import announce
from sstoken_plugin.training.setup import describe_warmups
from sstoken_plugin.training.trainer import TokenSelectionTrainer


class HistoryCallback(TrainerCallback):
    """Keeps the selection and its history in step with the training."""

    def __init__(self, trainer: TokenSelectionTrainer):
        assert trainer.sstoken is not None
        self._trainer = trainer
        self._session = trainer.sstoken

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin or resume: the weights of a checkpoint are loaded by now."""
        self._session.begin()
        self._session.begin_run()
        sentence = describe_warmups(self._session.config, self._session.names, args, state.max_steps)
        if sentence and state.is_world_process_zero:
            announce(sentence)
        self._trainer.resume_selection()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the history the new weights, unless overflow made the optimizer skip its step.

        Raises:
            RuntimeError: the step was not computed by the selection.
        """
        self._session.after_step(is_skipped=self._trainer.accelerator.optimizer_step_was_skipped)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write losses that wait to be written."""
        self._session.flush()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write losses that wait to be written: in the next epoch other ranks ask for them."""
        self._session.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write losses that wait to be written."""
        self._session.flush()
