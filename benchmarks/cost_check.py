"""The cost model beside what was measured on this CPU: `python benchmarks/cost_check.py outputs/benchmarks/step.json`.

The rates of the CPU are measured in about two seconds, in which nothing else may run.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cost_model import ARCHITECTURES, FLOAT32, GIB, Device, Setting, Side, peak_bytes, time_ratio
from step import STEPS

from sstoken_plugin.selection.config import SSTokenConfig


def measured_cpu() -> Device:
    """Return this CPU's rates in float32, on tensors of the sizes that SmolLM2-135M has."""
    shape = ARCHITECTURES["smollm2-135m"]
    rows = 1024
    weight = torch.randn(shape.width, shape.mlp)
    hidden, logits = torch.randn(rows, shape.width), torch.randn(rows, shape.vocabulary)
    # Other tensors each time, as in a pass over the layers.
    gates = [torch.randn(rows, shape.mlp) for _ in range(2 * shape.layers)]
    return Device(
        flops=2 * rows * weight.numel() / median_seconds(lambda: hidden @ weight),
        bandwidth=sum(2 * gate.nbytes for gate in gates) / median_seconds(lambda: multiply(gates)),
        loss_bandwidth=2 * logits.nbytes / median_seconds(lambda: torch.log_softmax(logits, -1)),
    )


def multiply(tensors: list[Any]) -> None:
    """Multiply tensors by a number, one at a time."""
    for tensor in tensors:
        tensor * 2


def median_seconds(work: Callable[[], Any], allowance: float = 0.7) -> float:
    """Return the median seconds of a call, repeated for a short while."""
    found: list[float] = []
    end = time.perf_counter() + allowance
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]


@functools.cache
def process_bytes() -> int:
    """Return the peak memory of a process that has imported Axolotl and done nothing."""
    code = "import axolotl.train, resource; print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(output.rsplit("PEAK", 1)[1])


def check(file: Path) -> str:
    """Return a table of predicted and measured ratios of the cases of step.py."""
    rows = json.loads(file.read_text())["rows"]
    device = measured_cpu()
    lines = [
        f"This CPU: {device.flops / 1e9:.0f} GFLOP/s, {device.bandwidth / 1e9:.0f} GB/s, "
        f"{(device.loss_bandwidth or 0) / 1e9:.1f} GB/s in softmax; "
        f"a process without a model: {process_bytes() / GIB:.2f} GiB.",
        "",
        "| case | time, predicted | time, measured | memory, predicted | memory, measured |",
        "| --- " * 5 + "|",
    ]
    for name, case in STEPS.items():
        setting, side = of_case(case)
        time_shown, memory_shown = measured(rows.get(name))
        memory = (process_bytes() + peak_bytes(setting, side)) / (process_bytes() + peak_bytes(setting, "plain"))
        predicted = time_ratio(setting, side, device)
        lines.append(f"| {name} | {predicted:.3f} | {time_shown} | {memory:.3f} | {memory_shown} |")
    return "\n".join(lines)


def measured(row: dict[str, Any] | None) -> tuple[str, str]:
    """Return the measured ratios of time and memory in words."""
    if row is None:
        return "-", "-"
    ratio = row["time_ratio"]
    return f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})", f"{row['memory_ratio']:.3f}"


def of_case(case: Any) -> tuple[Setting, Side]:
    """Return the setting and the plugin's side of a case of harness.py, on SmolLM2-135M in float32."""
    has_pass = not case.warm and SSTokenConfig.from_block(case.block).needs_history
    side: Side = "warm" if not has_pass else "ema" if case.block.get("history") == "ema" else "history"
    setting = Setting(
        ARCHITECTURES["smollm2-135m"],
        case.changes["adapter"] or "full",
        case.batch,
        case.length,
        case.prompt_share,
        checkpointing=bool(case.changes.get("gradient_checkpointing")),
        element=FLOAT32,
        masked=case.samples_per_row > 1,
    )
    return setting, side


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE", help="results of benchmarks/step.py")
    print(check(parser.parse_args().results))


if __name__ == "__main__":
    main()
