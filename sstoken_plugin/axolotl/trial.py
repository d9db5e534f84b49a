"""The first steps of a run, trained for a look at what it would select: nothing of them is kept."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sstoken_plugin.axolotl.experiment import SEVERAL_PROCESSES, SWITCHED_OFF, is_of_tracker


def refuse_unfit(cfg: Any) -> None:
    """Refuse a YAML whose training is one of several processes.

    Raises:
        ValueError: see there; one sentence with key and fix.
    """
    for key in SEVERAL_PROCESSES:
        if cfg.get(key):
            raise ValueError(
                f"--after trains in this process alone, and {key} asks for others; remove the key for this command, or "
                "name a trained adapter with --adapter."
            )


def train(cfg: Any, data: Any, steps: int, folder: Path, tell: Callable[[str], None]) -> tuple[Any, Steps]:
    """Train the first optimizer steps of a YAML by its own trainer, warm-ups and all.

    Args:
        cfg: the validated configuration. It is not changed.
        data: what `data_of` returns for it.
        steps: how many; of a shorter run, all.
        folder: in place of its `output_dir`.
        tell: is told how long it takes.

    Returns:
        The trainer after its training, with its selection; and how far it has come.
    """
    from axolotl.train import execute_training, handle_untrained_tokens_fix, setup_model_and_trainer

    first = without_traces(cfg, folder)
    trainer, model, tokenizer, *_ = setup_model_and_trainer(first, data)
    handle_untrained_tokens_fix(first, model, tokenizer, data.train_dataset)
    watch = Steps(steps, tell)
    trainer.add_callback(watch)
    execute_training(first, trainer, None)
    return trainer, watch


def without_traces(cfg: Any, folder: Path) -> Any:
    """Return the configuration of a training that writes to a folder alone, and evaluates and reports nothing."""
    found = copy.deepcopy(cfg)
    for key in (*SWITCHED_OFF, *filter(is_of_tracker, cfg)):
        found[key] = None
    return type(cfg)(
        {
            **found,
            "output_dir": str(folder),
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "auto_resume_from_checkpoints": False,
            "sstoken": _without_page(cfg.sstoken or {}),
        }
    )


def _without_page(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block of settings that asks for no page, which changes nothing of a training and takes time."""
    # What its other keys ask for would be warned of as without effect.
    return {**{key: value for key, value in block.items() if not key.startswith("report")}, "report": False}


class Steps(TrainerCallback):
    """Ends a training after its first steps, and says how long they take.

    Args:
        wanted: how many.
        tell: see `train`.

    Attributes:
        done: optimizer steps done.
        of: steps of the whole run.
        seconds: that all took.
    """

    def __init__(self, wanted: int, tell: Callable[[str], None]):
        self.done = self.of = 0
        self.seconds = 0.0
        self._wanted = wanted
        self._tell = tell
        self._begin = self._first = time.monotonic()

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, without the first one, which warms up what the others find warm, where there are more."""
        whole = self.seconds if self.done < 2 else self._begin + self.seconds - self._first
        return whole / max(1, self.done - 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of the time."""
        self.of = state.max_steps
        self._wanted = min(self._wanted, self.of)
        self._begin = time.monotonic()
        self._tell(f"Training {self._wanted} of the run's {self.of} optimizer steps.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell how long it will take, once that can be told, and stop after the last step."""
        now = time.monotonic()
        self.done, self.seconds = state.global_step, now - self._begin
        if self.done == 1:
            self._first = now
        if self.done >= self._wanted:
            control.should_training_stop = True
            self._tell(f"Trained {self.done} steps in {self.seconds:.0f} s.")
        elif self.done == 2:
            left = self.step_seconds * (self._wanted - self.done)
            self._tell(f"A step takes {self.step_seconds:.1f} s: about {left:.0f} s more.")
