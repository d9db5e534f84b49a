"""Cost of the plugin against plain Axolotl: time and peak memory of a step, of a run, and of the parts of a step.

    python benchmarks/step.py [--only NAME ...] [--pairs 7]

SmolLM2-135M in float32. Prints each figure as a ratio to plain Axolotl with its range over the pairs, writes
outputs/benchmarks/step.json and draws it (`pip install '.[bench]'`). How it is measured: harness.py. Run nothing else
meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    load,
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
}
EPOCH_STEPS = 6
EPOCHS = Case(changes={**LORA, "max_steps": 3 * EPOCH_STEPS}, warm=True)


def three_epochs(runs: int) -> dict[str, Any]:
    """Measure runs of three epochs; the first fills a cache that the others read."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with runs_of_epochs() as configs:
        memory = {side: in_child("step", "whole_run", config, **FREED_AT_ONCE) for side, config in configs.items()}
    for _ in range(runs):
        with runs_of_epochs() as configs:
            for side, taken in in_child("step", "runs_in_turn", configs).items():
                seconds[side].append(taken)
    return ratios(seconds, memory)


@contextmanager
def runs_of_epochs() -> Iterator[dict[str, dict[str, Any]]]:
    """Give the YAML of both sides, in a folder where no loss is kept yet."""
    with tempfile.TemporaryDirectory() as name:
        yield {side: EPOCHS.yaml(side, Path(name), samples=EPOCH_STEPS * EPOCHS.batch) for side in SIDES}


def runs_in_turn(configs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Train both sides in one process, a step of each in turn, and return the seconds of each run.

    What the plugin does before the first step counts as its own. A run is minutes long: one after the other, the two
    would be as far apart as the machine's speed drifts.
    """
    from sstoken_plugin.training.session import Session

    begin = Session.begin
    begun: list[float] = []
    Session.begin = lambda self: begun.append(timed(lambda: begin(self)))  # type: ignore[method-assign]
    sides = {side: build(config) for side, config in configs.items()}
    seconds = {"plain": 0.0, "plugin": sum(begun)}
    for _ in range(EPOCHS.changes["max_steps"]):
        for side, (trainer, batches) in sides.items():
            seconds[side] += step(trainer, next(batches))
    return seconds


def whole_run(config: dict[str, Any]) -> int:
    """Train to the end; return the peak memory of this process."""
    from axolotl.train import train

    cfg, data = load(config)
    train(cfg=cfg, dataset_meta=data)
    return peak_bytes()


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
    from sstoken_plugin.history.scoring import Work, score, work_left

    trainer, _ = build(config)
    losses, model = trainer.sstoken.selection.history, trainer.model
    missing = work_left(losses, trainer.train_dataset).missing
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(WARMUP_STEPS + pairs):
        samples = missing[2 * number : 2 * number + 2]
        for side in sides:
            start = time.perf_counter()
            if side == "plugin":
                for _ in score(losses, model, Work(len(samples), samples, 0), 1024):
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
        "three epochs, cache filled in the first": lambda pairs: three_epochs(min(pairs, 2)),
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
