"""Cost of the plugin against plain Axolotl: time and peak memory of a step, and of the parts of one.

    python benchmarks/step.py [--only NAME ...] [--pairs 7]

SmolLM2-135M in float32. Prints each figure as a ratio to plain Axolotl with its range over the pairs, writes
outputs/benchmarks/step.json and draws it (`pip install '.[bench]'`). How it is measured: harness.py; whole runs:
runs.py. Run nothing else meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import (
    FREED_AT_ONCE,
    LORA,
    NEVER_FREED,
    SIDES,
    WARMUP_STEPS,
    Case,
    asked,
    build,
    in_child,
    measure,
    peak_bytes,
    ratios,
    save,
    spread,
    step,
)
from plots import draw

FULL = {"adapter": None, "learning_rate": 1e-5}
STEPS = {
    "warm, 2 x 512": Case(warm=True),
    "warm, 1 x 2048, packed": Case(batch=1, length=2048, samples_per_row=4, warm=True),
    "warm, 2 x 512, prompt share 0.8": Case(prompt_share=0.8, warm=True),
    "warm, 2 x 512, prompt share 0.8, checkpointing": Case(
        prompt_share=0.8, warm=True, changes={**LORA, "gradient_checkpointing": True}
    ),
    "warm, 2 x 2048, prompt share 0.8": Case(length=2048, prompt_share=0.8, warm=True),
    "history in the step, 2 x 512": Case(),
    "ema, 2 x 512": Case(block={"history": "ema"}),
    "full, warm, 2 x 512": Case(changes=FULL, warm=True),
    "warm, 2 x 512, memory kept": Case(warm=True, environment=NEVER_FREED),
    "history in the step, 2 x 512, memory kept": Case(environment=NEVER_FREED),
    **{
        f"{selector}, 2 x 512{heap}": Case(block={"selector": selector}, environment=environment)
        for heap, environment in ((", memory kept", NEVER_FREED), ("", {}))
        for selector in ("attention", "random", "position", "all")
    },
}


def parts(pairs: int) -> dict[str, Any]:
    """Measure what the parts of a warm step of 1 x 2048 tokens take of it."""
    with tempfile.TemporaryDirectory() as name:
        config = replace(STEPS["warm, 1 x 2048, packed"], block={"report": True}).yaml("plugin", Path(name))
        in_child("harness", "fill_cache", config)
        return in_child("step", "parts_of_steps", config, pairs)


def parts_of_steps(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the share of the probe and of all bookkeeping in the time of each step."""
    from part_clock import part_shares

    trainer, batches = build(config)
    steps_taken = (step(trainer, next(batches)) for _ in range(WARMUP_STEPS + steps))
    return part_shares(steps_taken, timed, [(*place, "bookkeeping") for place in counting()])


def counting() -> list[tuple[Any, str]]:
    """Return the functions of a trainer's step that count: owner and name."""
    from sstoken_plugin.report.breakdown import KeptCounts
    from sstoken_plugin.training import session
    from sstoken_plugin.training.metrics import Totals

    return [(session, "counts"), (Totals, "add"), (KeptCounts, "add")]


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def scoring(pairs: int) -> dict[str, Any]:
    """Measure tokens a second of `sstoken-score` against bare forward passes, and the peak memory of both."""
    with tempfile.TemporaryDirectory() as name:
        config = STEPS["warm, 2 x 512"].yaml("plugin", Path(name), samples=2 * (WARMUP_STEPS + pairs))
        memory = {side: in_child("step", "scored", config, [side], pairs, **FREED_AT_ONCE)["peak"] for side in SIDES}
        # What was scored for the memory is kept now.
        shutil.rmtree(Path(name) / "cache")
        seconds = in_child("step", "scored", config, SIDES, pairs)["seconds"]
    result = ratios(seconds, memory)
    result["tokens_ratio"] = spread([a / b for a, b in zip(seconds["plain"], seconds["plugin"], strict=True)])
    return result


def scored(config: dict[str, Any], sides: list[str], pairs: int) -> dict[str, Any]:
    """Run batches of 1024 tokens bare, scored or in turn; return the seconds of each, and this process's peak."""
    from sstoken_plugin.engine.modes import without_trace
    from sstoken_plugin.history.scoring import Work, samples_to_score, score, work_left

    trainer, _ = build(config)
    losses, model = trainer.sstoken.selection.history, trainer.model
    data = trainer.train_dataset
    missing = work_left(losses, data).missing
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(WARMUP_STEPS + pairs):
        work = Work(2, missing[2 * number : 2 * number + 2], 0)
        samples = [samples_to_score(data[row])[place] for row, place, _ in work.missing.tolist()]
        for side in sides:
            start = time.perf_counter()
            if side == "plugin":
                for _ in score(losses, model, data, work, 1024):
                    pass
            else:
                import torch

                batch = {key: torch.cat([sample[key] for sample in samples]) for key in ("input_ids", "attention_mask")}
                with without_trace(model), model.disable_adapter():
                    model(**batch, use_cache=False)
            if number >= WARMUP_STEPS:
                seconds[side].append(time.perf_counter() - start)
    return {"seconds": seconds, "peak": peak_bytes()}


def main() -> None:
    """Run the benchmark and print a table."""
    rows: dict[str, Callable[[int], dict[str, Any]]] = {
        **{name: lambda pairs, case=case: measure(case, pairs) for name, case in STEPS.items()},  # type: ignore[misc]
        "sstoken-score": scoring,
        "parts": parts,
    }
    options = asked(__doc__, rows, 7)
    for name in options.only:
        row = rows[name](options.pairs)
        file = save("step", {name: row})
        print(f"{name:48} {line(row)}", flush=True)
    print(f"Written: {file}")
    draw("step")


def line(row: dict[str, Any]) -> str:
    """Return a row in words."""
    words = []
    for key, title in (
        ("time_ratio", "time"),
        ("tokens_ratio", "tokens a second"),
        ("probe", "probe"),
        ("bookkeeping", "bookkeeping"),
    ):
        if key in row:
            figures = row[key]
            words.append(f"{title} {figures['median']:.3f} ({figures['min']:.3f} to {figures['max']:.3f})")
    if "memory_ratio" in row:
        peak = row["peak_bytes"]
        words.append(f"memory {row['memory_ratio']:.3f} of {peak['plain'] / 2**30:.2f} GiB")
    return "   ".join(words)


if __name__ == "__main__":
    main()
