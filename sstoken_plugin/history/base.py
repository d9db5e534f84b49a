"""What a history model is, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.engine.sharding import size_of
from sstoken_plugin.history.fingerprint import fingerprint


class History:
    """A history model: the model's own past, or given weights, whose losses REL compares with.

    Attributes:
        description: what it is, in words that finish the sentence "REL compares with ...".
        changes: whether its weights change during training, so that losses cannot be kept.
        memory: bytes that it adds.
        device: where it adds them.
    """

    description: str
    changes: bool = False
    memory: int = 0
    device: torch.device = torch.device("cpu")

    def active(self, model: Any) -> AbstractContextManager[Any]:
        """Return a context manager that gives the model to run for the history's losses.

        Args:
            model: the unwrapped model in training. After the block it is as it was before.
        """
        raise NotImplementedError

    def fingerprint(self, model: Any) -> bytes:
        """Return a hash of all that its losses depend on beside the sample, 16 bytes.

        Args:
            model: see `active`.
        """
        with self.active(model) as past:
            return fingerprint(past)

    def digest(self, model: Any) -> str | None:
        """Return a hash of what `tensors` leaves to a new run to find, to tell whether it found the same."""
        return None

    def depends_on(self, name: str) -> bool:
        """Tell whether it reads a weight of the model in training that began to train later, by its name."""
        return True

    def after_step(self, model: Any, step: int) -> None:
        """Take in an optimizer step.

        Args:
            model: the unwrapped model, with the weights after the step.
            step: number of optimizer steps done, 1 after the first.
        """

    def tensors(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield what a checkpoint must hold to go on from there, whole; nothing where a new run finds it again.

        Every rank must exhaust this, because tensors may be put together from the parts of all.
        """
        return iter(())

    def restore(self, tensors: dict[str, Tensor], model: Any) -> None:
        """Take over the `tensors` of a checkpoint."""

    def restart(self, model: Any) -> None:
        """Begin anew at the model's weights as they are now, where a checkpoint does not say more."""


class Untrained(History):
    """The model itself, where it is not trained between the making of this and its use."""

    description = "the model before training"

    @contextmanager
    def active(self, model: Any) -> Iterator[Any]:
        """Give the model as it is."""
        yield model


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Sum the sizes of tensors in bytes, of those that are sharded what this rank holds."""
    return sum(size_of(tensor) for tensor in tensors)
