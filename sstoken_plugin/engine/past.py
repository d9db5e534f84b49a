"""What a step asks of the history, which the step does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from sstoken_plugin.selection.samples import BatchLayout


class PastLosses(Protocol):
    """Gives the losses of the model's past; `history.losses.HistoryLosses` is what does."""

    @property
    def history(self) -> Any:
        """The history model, a `history.base.History`; None where no model is needed."""

    @property
    def store(self) -> Any:
        """Where losses are kept, a `history.store.LossStore`; None where they are not."""

    def of(
        self, model: Any, batch: Mapping[str, Tensor], layout: BatchLayout, *, keeps: bool = True
    ) -> tuple[Tensor, int]:
        """Return the loss of each response token, float32 [R], and the number of samples that were in the cache.

        Args:
            model: the unwrapped model in training. It is not changed.
            batch: see `BatchLayout.of`, and whatever else the model takes.
            layout: its layout.
            keeps: whether losses that are computed may be kept.
        """

    def rel(self, history: Tensor, current: Tensor) -> Tensor:
        """Return REL of losses of the past and of now, both float32 [R]."""
