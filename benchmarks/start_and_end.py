"""What the plugin adds to a run before its first step and after its last one, part by part, in seconds.

    python benchmarks/start_and_end.py [--steps 60]

SmolLM2-135M, LoRA r 16, float32, 2 x 512 tokens, two epochs, a YAML with nothing but `plugins: [sstoken]` added. Parts
are timed inside of Axolotl's own training; what one of them calls of another counts for the outer one. 60 steps are
about ten minutes on two cores. Writes outputs/benchmarks/start_and_end.json. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import Case, load, save, unpack_model
from part_clock import PartClock
from step import timed

from sstoken_plugin.engine import step
from sstoken_plugin.engine.step import TokenSelection
from sstoken_plugin.history import build
from sstoken_plugin.history.adapter import AdapterOff
from sstoken_plugin.report.callback import ReportCallback
from sstoken_plugin.report.trajectory import Trajectory
from sstoken_plugin.training import attach
from sstoken_plugin.training.session import Session

# Owner, function, part; the outer one of two counts.
PARTS: list[tuple[Any, str, str]] = [
    (attach, "look_at_data", "start: a look at the data"),
    (AdapterOff, "fingerprint", "start: hash of the weights"),
    (build, "_store", "start: opening the cache"),
    (build, "_refuse_traces", "start: trial pass of the history"),
    (attach, "build_selection", "start: the model's head, attention and own loss"),
    (TokenSelection, "_prove", "first batch: watching attention changes nothing"),
    (step, "samples_see_each_other", "first batch: samples of packed rows are separate"),
    (Trajectory, "finish", "end: samples of the page"),
    (Trajectory, "after_step", "in the run: samples of the page"),
    (ReportCallback, "on_train_end", "end: writing the page"),
    (Session, "flush", "end: writing losses"),
]


def run(steps: int) -> dict[str, Any]:
    """Train, and return the seconds of each part and of the training."""
    from axolotl.train import setup_model_and_trainer

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        config = Case().yaml("plugin", Path(name), samples=steps)
        cfg, data = load({**config, "max_steps": steps, "logging_steps": 1, "sstoken": {}})
        clock = PartClock(timed, (part for *_, part in PARTS))
        for place in PARTS:
            stack.enter_context(clock.watch(*place))
        trainer = setup_model_and_trainer(cfg, data)[0]
        return {"training": timed(trainer.train), "parts": clock.spent, "steps": steps}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    unpack_model()
    found = run(options.steps)
    for part, seconds in found["parts"].items():
        print(f"{part:52} {seconds:6.2f} s")
    ends = sum(seconds for part, seconds in found["parts"].items() if not part.startswith("in the run"))
    print(f"{'start and end together':52} {ends:6.2f} s of {found['training']:.0f} s ({ends / found['training']:.1%})")
    print(f"Written: {save('start_and_end', {f'{options.steps} steps': found})}")


if __name__ == "__main__":
    main()
