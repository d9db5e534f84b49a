"""Time and memory of a training step with each kind of history, against plain Axolotl, in pairs, in the same run.

    python benchmarks/histories.py [--batch 2] [--length 256] [--pairs 3]

See harness.py for how time and peak memory are measured. REL counts in every step timed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness import LORA, MODEL, Case, in_child, measure, save, unpack_model
from step import FULL, line


def cases(batch: int, length: int, adapter: str) -> dict[str, Case]:
    """Return every kind of history by name; `adapter` is a folder."""
    size: dict[str, Any] = {"batch": batch, "length": length}
    return {
        "LoRA, initial": Case(**size),
        "LoRA, initial, cache filled": Case(**size, warm=True),
        "LoRA, ema": Case(**size, block={"history": "ema"}),
        "LoRA, snapshot": Case(**size, block={"history": "snapshot"}),
        "LoRA, path of an adapter": Case(**size, block={"history": adapter}),
        "LoRA, path of a full checkpoint": Case(**size, block={"history": str(MODEL)}),
        "full, initial": Case(**size, changes=FULL),
        "full, initial, cache filled": Case(**size, changes=FULL, warm=True),
        "full, ema": Case(**size, changes=FULL, block={"history": "ema"}),
    }


def save_adapter(folder: str) -> None:
    """Write an adapter like that of the runs, with an effect."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=LORA["lora_r"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(folder)


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    unpack_model()
    with tempfile.TemporaryDirectory() as name:
        adapter = str(Path(name) / "adapter")
        in_child("histories", "save_adapter", adapter)
        for kind, case in cases(options.batch, options.length, adapter).items():
            row = measure(case, options.pairs)
            peak = row["peak_bytes"]
            file = save("histories", {kind: row})
            print(f"{kind:32} {line(row)} ({(peak['plugin'] - peak['plain']) / 2**20:+.0f} MiB)", flush=True)
    print(f"Written: {file}")


if __name__ == "__main__":
    main()
