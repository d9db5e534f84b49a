"""Axolotl's trainer with token selection."""

from axolotl.core.trainers.base import AxolotlTrainer

from sstoken_plugin.trainer import TokenSelectionTrainer


class SSTokenTrainer(AxolotlTrainer, TokenSelectionTrainer):
    """Axolotl prepares the inputs, the selection computes the loss, transformers trains."""
