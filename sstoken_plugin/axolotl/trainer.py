"""Axolotl's trainer with token selection."""

from __future__ import annotations

from typing import Any

from axolotl.core.trainers.base import AxolotlTrainer

from sstoken_plugin.training.trainer import TokenSelectionTrainer


class SSTokenTrainer(AxolotlTrainer, TokenSelectionTrainer):
    """Axolotl prepares the inputs, the selection computes the loss, transformers trains."""

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Begin the selection first: Axolotl's own schedulers do not come to that of `TokenSelectionTrainer`."""
        self._begin_selection()
        return super().create_scheduler(*args, **kwargs)
