"""A short training run in the words of no framework, and what is remembered of it.

As `python -m trainers.run_FRAMEWORK PLANS.json`, alone or under torchrun, an adapter (see cases.py) trains plans one
after the other; each rank writes what it saw into rank-N.pt of each plan's folder, for the test to look at.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.engine.step import ScoredStep, TokenSelection


@dataclass(frozen=True)
class Plan:
    """A LoRA run (r 4, alpha 8, no dropout, all linear layers) in float32 on a CPU, with sdpa attention.

    AdamW with a constant learning rate and STEADY's epsilon, seed 42, one log line an optimizer step.

    Attributes:
        model: folder of the model and its tokenizer.
        chats: JSONL file of chats, `{"messages": [{"role": ..., "content": ...}, ...]}`.
        folder: what the framework calls its output_dir; it may not be there yet.
        kind: a name of the adapter's KINDS.
        sstoken: the block of settings; None trains plainly.
        steps: optimizer steps.
        batch: rows of a micro-batch on one rank.
        accumulation: micro-batches of an optimizer step on one rank.
        evaluates: whether the loss on the same chats is measured after each step.
        saves: steps between two checkpoints; 0 for none.
        resumes_from: folder of a checkpoint.
        options: settings of the framework, in its own words.
    """

    model: str
    chats: str
    folder: str
    kind: str
    sstoken: dict[str, Any] | None = None
    steps: int = 4
    batch: int = 2
    accumulation: int = 1
    learning_rate: float = 0.02
    evaluates: bool = False
    saves: int = 0
    resumes_from: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The chats."""
        return [json.loads(line) for line in Path(self.chats).read_text().splitlines()]


@dataclass(frozen=True)
class Trained:
    """What is left of a run.

    Attributes:
        trainer: the trainer, of whatever class.
        weights: the trained weights by their names in the unwrapped model.
    """

    trainer: Any
    weights: dict[str, Tensor]

    @classmethod
    def by(cls, trainer: Any) -> Trained:
        """Take what a trainer has when `train` has returned."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        return cls(trainer, trained_weights(model))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log lines of training steps."""
        return [line for line in self.trainer.state.log_history if "loss" in line]

    @property
    def losses(self) -> list[float]:
        """The logged loss of each optimizer step."""
        return [line["loss"] for line in self.lines]

    @property
    def evaluations(self) -> list[float]:
        """The losses of the evaluations."""
        return [line["eval_loss"] for line in self.trainer.state.log_history if "eval_loss" in line]


@dataclass(frozen=True)
class Micro:
    """A micro-batch of training as the selection saw it.

    Attributes:
        step: the scored step.
        batch: what it was scored on.
        weights: the trained weights before it.
    """

    step: ScoredStep
    batch: dict[str, Any]
    weights: dict[str, Tensor]

    def kept(self) -> set[tuple[int, tuple[bool, ...]]]:
        """Each sample, by a hash of its tokens, with its kept tokens."""
        layout, sizes = self.step.layout, self.step.layout.lengths.tolist()
        parts = self.step.kept.split(sizes)
        return {(mark, tuple(part.tolist())) for mark, part in zip(layout.fingerprint.tolist(), parts, strict=True)}


def trained_weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def recorded() -> Iterator[list[Micro]]:
    """Remember every micro-batch that is trained on inside the block, in order."""
    found: list[Micro] = []
    begin, loss = TokenSelection.begin, ScoredStep.loss

    def remember(self: Any, model: Any, batch: Any, *args: Any, **kwargs: Any) -> ScoredStep:
        step = begin(self, model, batch, *args, **kwargs)
        step.seen = ({key: copy.copy(value) for key, value in batch.items()}, trained_weights(model))  # type: ignore[attr-defined]
        return step

    def record(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        result = loss(self, *args, **kwargs)
        # Samples of the page are scored without gradient.
        if torch.is_grad_enabled():
            found.append(Micro(self, *self.seen))
        return result

    TokenSelection.begin, ScoredStep.loss = remember, record  # type: ignore[assignment, method-assign]
    try:
        yield found
    finally:
        TokenSelection.begin, ScoredStep.loss = begin, loss  # type: ignore[method-assign]


def main(train: Callable[[Plan], Trained]) -> None:
    """Train the plans of the file that is the only argument; see above."""
    for values in json.loads(Path(sys.argv[1]).read_text()):
        plan = Plan(**values)
        with recorded() as micros:
            run = train(plan)
        Path(plan.folder).mkdir(parents=True, exist_ok=True)
        seen = {"losses": run.losses, "weights": run.weights, "kept": [micro.kept() for micro in micros]}
        torch.save(seen, Path(plan.folder) / f"rank-{os.environ.get('RANK', '0')}.pt")


def write_plans(file: Path, *plans: Plan) -> Path:
    """Write plans for `main`."""
    file.write_text(json.dumps([asdict(plan) for plan in plans]))
    return file
