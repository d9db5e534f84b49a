"""What stands before ms-swift's trainer, which computes the loss of a step itself."""

from __future__ import annotations

from typing import Any

from sstoken_plugin.selection.samples import IGNORE_INDEX
from sstoken_plugin.swift.refusals import LOSS_SCALE
from sstoken_plugin.swift.settings import WITHOUT
from sstoken_plugin.training.trainer import TokenSelectionTrainer

# What ms-swift puts among the inputs of a model that the model does not take.
_OWN_KEYS = ("compute_loss_func", "loss_scale", "text_position_ids", "channel")


class SwiftFront:
    """Takes the loss of training steps over; evaluation stays ms-swift's."""

    def get_use_logits_to_keep(self: Any, default_value: bool = True) -> bool:
        """Answer no in training: ms-swift would cut the labels to where there are some, and prompts with them."""
        if self.model.training:
            return False
        answer: bool = super().get_use_logits_to_keep(default_value)  # type: ignore[misc]
        return answer

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of the kept tokens in training, and ms-swift's loss in evaluation.

        Raises:
            ValueError: tokens have weights other than 0 and 1.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        weights = inputs.get("loss_scale")
        inputs = {key: value for key, value in inputs.items() if key not in _OWN_KEYS}
        if weights is not None:
            if not bool(((weights == 0) | (weights == 1)).all()):
                LOSS_SCALE.refuse(self.template._loss_scale, WITHOUT)
            inputs["labels"] = inputs["labels"].masked_fill(weights == 0, IGNORE_INDEX)
        return TokenSelectionTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
