"""Whether memory or time of a step grows over a long run: 2,000 steps of Axolotl's own training, with and without us.

    python benchmarks/endurance.py [--steps 2000] [--only plain plugin ema]

A random Llama of three layers with SmolLM2's tokenizer, LoRA, one row of 128 tokens: so small that what the plugin
does itself is a large part of a step. Everything that could pile up is on: metrics in every log line, the report page
with its moments and tables, a checkpoint every 500 steps, and on the plugin's side the loss cache, which fills in the
epoch after the warm-up. Each side is a process of its own; sides follow each other, and nothing else may run meanwhile.
A slope is that of a straight line through the values after the first 200 steps, with its standard error. Results:
outputs/benchmarks/endurance.json.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import FREED_AT_ONCE, MODEL, Case, in_child, load, save, unpack_model, write_random_model

# Steps between two readings, and those before the line begins.
EVERY, SETTLING = 10, 200
FOLDER = MODEL.parent / "random-llama-3-layers"
CASE = Case(batch=1, length=128, model=FOLDER, environment=FREED_AT_ONCE)
BLOCKS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "plugin": {"report": True, "warmup_ratio": 0.2, "history_cache": "CACHE"},
    "ema": {"report": True, "warmup_ratio": 0.2, "history": "ema"},
}


def write_model() -> None:
    """Write the model, unless it is there."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    write_random_model(FOLDER, "llama", vocab_size=49152, **sizes)


def readings(config: dict[str, Any]) -> list[tuple[int, float, int]]:
    """Train, and return step, seconds since the start, and resident bytes, every few steps."""
    from axolotl.train import setup_model_and_trainer
    from transformers import TrainerCallback

    found: list[tuple[int, float, int]] = []

    class Reader(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % EVERY == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                found.append((state.global_step, time.perf_counter(), pages * os.sysconf("SC_PAGE_SIZE")))

    cfg, data = load(config)
    trainer = setup_model_and_trainer(cfg, data)[0]
    trainer.add_callback(Reader())
    trainer.train()
    return found


def line_through(points: list[tuple[float, float]]) -> dict[str, float]:
    """Return the slope of the least-squares line through points, and its standard error."""
    count = len(points)
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return {"slope": slope, "standard_error": (rest / (count - 2) / spread) ** 0.5}


def summary(found: list[tuple[int, float, int]]) -> dict[str, Any]:
    """Return the figures of one side."""
    settled = [reading for reading in found if reading[0] > SETTLING]
    each = [(step, (after - before) / EVERY) for (_, before, _), (step, after, _) in itertools.pairwise(settled)]
    return {
        "seconds_a_step": statistics.median(seconds for _, seconds in each),
        "seconds_over_steps": line_through(each),
        "first_bytes": settled[0][2],
        "last_bytes": settled[-1][2],
        "bytes_over_steps": line_through([(step, size) for step, _, size in settled]),
        "readings": found,
    }


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    options = parser.parse_args()
    unpack_model()
    in_child("endurance", "write_model")
    plain = None
    for side in options.only:
        with tempfile.TemporaryDirectory() as name:
            folder, block = Path(name), BLOCKS[side]
            settings = {key: str(folder / value) if value == "CACHE" else value for key, value in (block or {}).items()}
            case = replace(CASE, block=settings)
            config = case.yaml("plain" if block is None else "plugin", folder, samples=400)
            config |= {"max_steps": options.steps, "logging_steps": 10, "save_strategy": "steps", "save_steps": 500}
            config["save_total_limit"] = 1
            row = summary(in_child("endurance", "readings", config, **case.environment))
        file = save("endurance", {side: row})
        plain = plain or row
        memory, seconds = row["bytes_over_steps"], row["seconds_over_steps"]
        ratio = row["seconds_a_step"] / plain["seconds_a_step"]
        print(
            f"{side:8} {row['seconds_a_step'] * 1e3:6.1f} ms a step ({ratio:.2f} of the first side's), slope "
            f"{seconds['slope'] * 1e9:+.0f} +- {seconds['standard_error'] * 1e9:.0f} us in 1000 steps; "
            f"{row['last_bytes'] / 2**20:.0f} MiB, slope {memory['slope'] * 1000 / 2**10:+.0f} +- "
            f"{memory['standard_error'] * 1000 / 2**10:.0f} KiB in 1000 steps",
            flush=True,
        )
    print(f"Written: {file}")


if __name__ == "__main__":
    main()
