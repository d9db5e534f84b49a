"""The callback that lets ms-swift's trainer select."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from sstoken_plugin.swift import settings


class SSTokenCallback(TrainerCallback):
    """`--callbacks sstoken`: attaches the selection to the trainer that makes it, as soon as that is whole.

    Args:
        args: the training arguments.
        trainer: the trainer, which is being made.

    Raises:
        ValueError: there are no settings, or they are not valid.
    """

    def __init__(self, args: Any, trainer: Any):
        self._trainer = trainer
        # At once, before anything that takes time.
        self._config = settings.read()

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach the selection.

        Raises:
            ValueError: it cannot run in this training; one sentence with key, reason and way out.
        """
        from sstoken_plugin.attachment import attach

        attach(self._trainer, self._config)
