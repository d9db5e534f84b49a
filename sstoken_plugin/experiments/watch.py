"""A callback of the trainer: how far a run is, and checkpoints by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

# So many times as long as a checkpoint takes, the training goes on before the next one.
_SHARE = 10


class Watch(TrainerCallback):
    """Tells how far a training is, and has it write a checkpoint every so many minutes.

    By the clock, not by steps: a short run writes none, a long one loses the same time wherever it is killed. Where
    writing takes long there are fewer, so that they take a tenth of the time at most. A checkpoint does not change the
    training.

    Args:
        tell: is called with steps done and steps in all.
        checkpoint_minutes: between two checkpoints; 0 is one after each step.
    """

    def __init__(self, tell: Callable[[int, int], None], checkpoint_minutes: float):
        self._tell = tell
        self._seconds = 60 * checkpoint_minutes
        self._saved = self._begin = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note that the first step begins."""
        self._tell(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of a step."""
        self._tell(state.global_step, state.max_steps)
        # Not behind the last one: a run that resumes there may do a step more.
        if state.global_step < state.max_steps and time.monotonic() - self._saved >= self._seconds:
            control.should_save = True
            self._begin = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of a checkpoint that was written."""
        self._saved = time.monotonic()
        if self._seconds:
            self._seconds = max(self._seconds, _SHARE * (self._saved - self._begin))


class EnoughError(Exception):
    """Ends a training that was begun to be measured."""


class Stopwatch(TrainerCallback):
    """Measures some steps, then ends the training.

    Args:
        steps: how many, the first not counted.
        seconds: after so many it ends whatever it has.

    Attributes:
        step_seconds: seconds of each step that counts.
        max_steps: steps that the training would have had.
    """

    def __init__(self, steps: int, seconds: float):
        self.step_seconds: list[float] = []
        self.max_steps = 0
        self._wanted = steps
        self._limit = seconds
        self._last = self._begin = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of a step.

        Raises:
            EnoughError: enough is measured.
        """
        now = time.monotonic()
        # The first one begins before it, and warms up what the others find warm.
        if state.global_step > 1:
            self.step_seconds.append(now - self._last)
        else:
            self._begin = now
        self._last, self.max_steps = now, state.max_steps
        if len(self.step_seconds) >= self._wanted or (self.step_seconds and now - self._begin > self._limit):
            raise EnoughError
