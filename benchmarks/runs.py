"""Whole runs of Axolotl with the plugin and without, as a user starts them: from the call of `train()` to its end.

    python benchmarks/runs.py [--only NAME ...] [--steps 36] [--pairs 1]

SmolLM2-135M, LoRA r 16, float32, 2 x 512 tokens, a third of them prompt; the YAML has nothing of the plugin but
`plugins: [sstoken]`, and in some cases a selector. Both sides run at the same time, each in a process of its own, and
take turns: start, each step, end. So the machine's drift meets both alike. In "memory kept" the C library gives no
memory back (see harness.py). Prints the ratio of the whole run, the median and range of those of its steps, and the
seconds of start and end, which weigh the less the longer a run is; writes outputs/benchmarks/runs.json. Run nothing
else meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from harness import LORA, NEVER_FREED, SIDES, Case, asked, load, save, spread

# Not a script of its own: Axolotl's data loading starts processes that would run it again.
_CHILD = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); import runs; "
    "runs.take_turns(json.loads(sys.argv[2]), int(sys.argv[3]))"
)


@dataclass(frozen=True)
class RunCase:
    """A run.

    Attributes:
        epochs: that the steps make.
        block: of `sstoken:`.
        environment: of both processes.
    """

    epochs: int = 1
    block: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def yaml(self, side: str, folder: Path, steps: int) -> dict[str, Any]:
        """Return the YAML of one side."""
        case = Case(changes={**LORA, "max_steps": steps})
        config = case.yaml(side, folder, samples=steps * case.batch // self.epochs)
        return {**config, "sstoken": self.block} if side == "plugin" else config


HEAPS: dict[str, dict[str, str]] = {"": {}, ", memory kept": NEVER_FREED}
CASES = {
    f"{name}{heap}": RunCase(epochs, block, environment)
    for heap, environment in HEAPS.items()
    for name, epochs, block in (
        ("one epoch", 1, {}),
        ("three epochs", 3, {}),
        ("random, one epoch", 1, {"selector": "random"}),
        ("position, one epoch", 1, {"selector": "position"}),
        ("all, one epoch", 1, {"selector": "all"}),
        ("attention, one epoch", 1, {"selector": "attention"}),
    )
}


def take_turns(config: dict[str, Any], end: int) -> None:
    """Train in this process, in turns that another one gives.

    Args:
        config: what to train.
        end: file descriptor of this process's end of a pipe.
    """
    from axolotl.train import setup_model_and_trainer
    from transformers import TrainerCallback

    cfg, data = load(config)
    trainer = setup_model_and_trainer(cfg, data)[0]
    with Connection(end) as turns:
        begun = 0.0

        def wait() -> None:
            nonlocal begun
            turns.send(time.perf_counter() - begun)
            turns.recv()
            begun = time.perf_counter()

        class Turns(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                wait()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == state.max_steps:
                    wait()

        trainer.add_callback(Turns())
        wait()
        trainer.train()
        turns.send(time.perf_counter() - begun)


def pair(case: RunCase, steps: int) -> dict[str, list[float]]:
    """Return the seconds of each turn of both sides: start, steps, end."""
    with tempfile.TemporaryDirectory() as name:
        sides: dict[str, Connection] = {}
        children = []
        for side in SIDES:
            config = json.dumps(case.yaml(side, Path(name), steps))
            environment = {**os.environ, "AXOLOTL_LOG_LEVEL": "WARNING", **case.environment}
            # A child that ends early closes its end, so that nothing waits for it.
            sides[side], other = Pipe()
            end = other.fileno()
            command = [sys.executable, "-c", _CHILD, str(Path(__file__).parent), config, str(end)]
            children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, pass_fds=[end]))
            other.close()
            # It is ready; this was no turn.
            sides[side].recv()
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(steps + 2):
            for side, turns in sides.items():
                turns.send(None)
                seconds[side].append(turns.recv())
        for child in children:
            child.wait()
        return seconds


def figures(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the ratios of a pair of runs, and what start and end take on each side."""
    total = {side: sum(turns) for side, turns in seconds.items()}
    steps = [own / plain for plain, own in list(zip(seconds["plain"], seconds["plugin"], strict=True))[1:-1]]
    ends = {side: turns[0] + turns[-1] for side, turns in seconds.items()}
    return {
        "seconds": seconds,
        "time_ratio": total["plugin"] / total["plain"],
        "step_ratio": spread(steps),
        "start_and_end": ends,
    }


def main() -> None:
    """Run the benchmark and print a table."""
    options = asked(__doc__, CASES, 1, steps=36)
    for name in options.only:
        for number in range(options.pairs):
            row = figures(pair(CASES[name], options.steps))
            file = save("runs", {f"{name}, pair {number + 1}": row})
            step, ends = row["step_ratio"], row["start_and_end"]
            print(
                f"{name:36} whole run {row['time_ratio']:.3f}   "
                f"step {step['median']:.3f} ({step['min']:.3f} to {step['max']:.3f})   "
                f"start and end {ends['plugin']:.1f} s, plain {ends['plain']:.1f} s",
                flush=True,
            )
    print(f"Written: {file}")


if __name__ == "__main__":
    main()
