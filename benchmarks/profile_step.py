"""Where the time of a step goes, by torch's profiler: plain Axolotl, the plugin with its cache filled, and without one.

    python benchmarks/profile_step.py [--steps 3] [--batch 2] [--length 512]

SmolLM2-135M in float32 with LoRA. Every operator's own time counts for one part, told by what it works on: a dimension
as large as the vocabulary is the output head and its loss, one of the adapter's rank is the adapter, and so on. Prints
a table of milliseconds a step, writes outputs/benchmarks/profile.json and draws it (`pip install '.[bench]'`). The
profiler makes many small operators look dearer than they are: for totals see step.py. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness import LORA, WARMUP_STEPS, Case, build, in_child, save, step, unpack_model
from plots import PARTS, draw

MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkl_linear", "mkldnn::_linear_pointwise")
SELECTION, HISTORY, OPTIMIZER = "sstoken: selection", "sstoken: history", "Optimizer.step"


def part_of(event: Any, vocabulary: int) -> str:
    """Return the part of a step that an operator's own time counts for."""
    callers = []
    caller = event
    while caller is not None:
        callers.append(caller.name)
        caller = caller.cpu_parent
    sizes = {size for shape in event.input_shapes or () if isinstance(shape, (list, tuple)) for size in shape}
    if any(name.startswith(OPTIMIZER) for name in callers):
        return "optimizer"
    if HISTORY in callers:
        return "history's forward pass"
    if vocabulary in sizes:
        return "output head and loss"
    if SELECTION in callers:
        return "selection"
    backward = any(name.startswith("autograd::engine") for name in callers)
    if any("scaled_dot_product" in name for name in callers):
        kind = "attention"
    elif event.name in MATRIX_PRODUCTS:
        kind = "adapter" if LORA["lora_r"] in sizes else "linear layers"
    else:
        kind = "norms, activations, the rest"
    return f"{kind}, {'backward' if backward else 'forward'}"


def profile(config: dict[str, Any], steps: int) -> dict[str, float]:
    """Return the seconds of a step by part, and under `total` its own on the clock."""
    import part_clock
    from step import counting
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiler

    from sstoken_plugin.history.losses import HistoryLosses

    def named(owner: Any, name: str, part: str) -> Any:
        function = getattr(owner, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            with record_function(part):
                return function(*args, **kwargs)

        return patch.object(owner, name, recorded)

    trainer, batches = build(config)
    for _ in range(WARMUP_STEPS):
        step(trainer, next(batches))
    with ExitStack() as stack:
        for owner, name in [*((owner, name) for owner, name, _ in part_clock.PARTS), *counting()]:
            stack.enter_context(named(owner, name, HISTORY if owner is HistoryLosses else SELECTION))
        recording = stack.enter_context(profiler(activities=[ProfilerActivity.CPU], record_shapes=True))
        start = time.perf_counter()
        for _ in range(steps):
            step(trainer, next(batches))
        total = time.perf_counter() - start
    spent: dict[str, float] = defaultdict(float)
    for event in recording.events():
        spent[part_of(event, trainer.model.config.vocab_size)] += event.self_cpu_time_total / 1e6 / steps
    return {**spent, "total": total / steps}


def main() -> None:
    """Run the profiles and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    unpack_model()
    size: dict[str, Any] = {"batch": options.batch, "length": options.length}
    with tempfile.TemporaryDirectory() as name:
        sides = {
            "plain": Case(**size).yaml("plain", Path(name)),
            "plugin, cache filled": Case(**size, warm=True).yaml("plugin", Path(name)),
            "plugin, history in the step": Case(**size).yaml("plugin", Path(name)),
        }
        in_child("harness", "fill_cache", sides["plugin, cache filled"])
        rows = {side: in_child("profile_step", "profile", config, options.steps) for side, config in sides.items()}
    file = save("profile", rows)
    print("| part, ms a step | " + " | ".join(rows) + " |\n|" + " --- |" * (1 + len(rows)))
    for part in [*PARTS, "total"]:
        print(f"| {part} | " + " | ".join(f"{1000 * row.get(part, 0):.0f}" for row in rows.values()) + " |")
    print(f"Written: {file}")
    draw("profile")


if __name__ == "__main__":
    main()
