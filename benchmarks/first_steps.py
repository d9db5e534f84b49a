"""How soon the choice of a run is that of its end: what `sstoken-inspect --after N` shows, for several N of one run.

    python benchmarks/first_steps.py config.yaml --samples 30

For each N, of the tokens that are kept then or at the end, the share that is kept both times. The warm-up selects by
attention, whatever the YAML says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from axolotl.train import execute_training, setup_model_and_trainer
from transformers import TrainerCallback

from sstoken_plugin.axolotl import trial
from sstoken_plugin.axolotl.experiment import data_of, load
from sstoken_plugin.engine.step import Phase
from sstoken_plugin.report.content import Record
from sstoken_plugin.report.inspection import inspect_samples
from sstoken_plugin.report.terminal import agreement

STEPS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 100, 200)


class Look(TrainerCallback):
    """Scores samples after some steps, and after the last."""

    def __init__(self, trainer: Any, samples: Any):
        self.found: dict[int, list[Record]] = {}
        self._trainer = trainer
        self._samples = samples

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score them."""
        if state.global_step not in (*STEPS, state.max_steps):
            return
        session = self._trainer.sstoken
        with self._trainer.accelerator.autocast():
            self.found[state.global_step] = list(
                inspect_samples(
                    session.selection, session.model, self._samples, Phase.of(session.config), session.tokenizer
                )
            )


def main() -> None:
    """Train by a YAML, and print how far the choice after N steps agrees with that of the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--samples", type=int, default=30)
    options = parser.parse_args()
    cfg = load(options.config)
    cfg.sstoken = {**(cfg.sstoken or {}), "warmup_selector": "attention"}
    data = data_of(cfg)
    with tempfile.TemporaryDirectory() as folder:
        first = trial.without_traces(cfg, Path(folder))
        trainer = setup_model_and_trainer(first, data)[0]
        look = Look(trainer, data.train_dataset.select(range(min(options.samples, len(data.train_dataset)))))
        trainer.add_callback(look)
        execute_training(first, trainer, None)
    *_, last = look.found.values()
    for step, records in look.found.items():
        rel = [abs(value) for record in records for value in record["rel"] if value is not None]
        print(f"after {step} steps: mean |REL| {sum(rel) / max(len(rel), 1):.2f}. {agreement(records, last)}")


if __name__ == "__main__":
    main()
