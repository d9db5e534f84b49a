"""Time and peak memory of a training step: plain Axolotl against the plugin, in pairs, in the same run.

    python benchmarks/step.py [--batch 2] [--length 512] [--prompt-share 0.333] [--pairs 7] [--out FILE]

Both sides are Axolotl's own trainer on the same model and the same batches: what is timed is
`Trainer.training_step` (forward, loss, backward), the optimizer step included. Steps alternate,
plain then plugin, and the ratio is taken pair by pair, so that a machine whose speed drifts does no harm. Peak memory
is that of a process of its own for each side, because a process never gives its peak back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", AXOLOTL_LOG_LEVEL="WARNING")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WARMUP_STEPS = 2
SIDES = ("plain", "plugin")


def configuration(side: str, folder: Path, data: Path, model: Path, batch: int, length: int) -> dict[str, Any]:
    """Return the YAML of one side; they differ in the plugin and nothing else."""
    config = {
        "base_model": str(model),
        "datasets": [{"path": str(data), "type": "input_output"}],
        "dataset_prepared_path": str(folder / f"prepared-{side}"),
        "output_dir": str(folder / side),
        "sequence_len": length,
        "pad_to_sequence_len": True,
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_linear": True,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "micro_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": 100,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "save_strategy": "no",
        "seed": 42,
    }
    if side == "plugin":
        # After the warm-up, where REL counts; the history is computed in the step.
        config |= {"plugins": ["sstoken"], "sstoken": {"warmup_ratio": 0.0, "report": False}}
    return config


def write_data(file: Path, length: int, prompt_share: float, samples: int = 64) -> None:
    """Write samples that fill the sequence: text of our own, numbers in words."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    lines = []
    for index in range(samples):
        text = [words[(index * 7 + place * (1 + index % 3)) % 10] for place in range(2 * length)]
        prompt = int(length * prompt_share)
        segments = [
            {"label": False, "text": " ".join(text[:prompt])},
            {"label": True, "text": " " + " ".join(text[prompt : length - 1])},
        ]
        lines.append(json.dumps({"segments": segments}))
    file.write_text("\n".join(lines))


def build(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return a trainer ready to train, and an iterator over its batches."""
    import yaml
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import setup_model_and_trainer
    from transformers import set_seed

    PluginManager.get_instance().plugins.clear()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        yaml.safe_dump(config, file)
    cfg = load_cfg(file.name)
    os.unlink(file.name)
    set_seed(0)
    data = load_datasets(cfg=cfg)
    trainer = setup_model_and_trainer(cfg, data)[0]
    trainer.state.max_steps = config["max_steps"]
    trainer.create_optimizer()
    if "sstoken" in config:
        trainer.begin_selection()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.config.use_cache = False
    return trainer, iter(trainer.get_train_dataloader())


def step(trainer: Any, batch: Any) -> float:
    """Run one optimizer step and return its seconds."""
    start = time.perf_counter()
    trainer.training_step(trainer.model, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    seconds = time.perf_counter() - start
    trainer.state.global_step += 1
    return seconds


def time_pairs(configs: dict[str, dict[str, Any]], pairs: int) -> dict[str, list[float]]:
    """Return the seconds of `pairs` steps of each side, taken in turn after a warm-up."""
    built = {side: build(config) for side, config in configs.items()}
    seconds: dict[str, list[float]] = {side: [] for side in configs}
    for index in range(WARMUP_STEPS + pairs):
        for side, (trainer, batches) in built.items():
            taken = step(trainer, next(batches))
            if index >= WARMUP_STEPS:
                seconds[side].append(taken)
    return seconds


def peak_of(config: dict[str, Any]) -> int:
    """Return the peak of this process's memory in bytes, after three steps."""
    trainer, batches = build(config)
    for _ in range(3):
        step(trainer, next(batches))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_in_child(side: str) -> int:
    """Return `peak_of` one side, measured in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", side]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(output.split("PEAK")[1])


def versions() -> dict[str, str]:
    """Return what the figures depend on."""
    from importlib.metadata import version

    names = ("axolotl", "torch", "transformers", "peft", "sstoken-plugin")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version()} | {
        name: version(name) for name in names
    }


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompt-share", type=float, default=1 / 3)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "benchmarks" / "step.json")
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()

    from demo.model import unpack

    unpack(options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.jsonl"
        write_data(data, options.length, options.prompt_share)
        configs = {
            side: configuration(side, folder, data, options.model, options.batch, options.length) for side in SIDES
        }
        if options.peak_of:
            print("PEAK", peak_of(configs[options.peak_of]))
            return
        # First, while this process is small: a child's peak starts at its parent's.
        memory = {side: peak_in_child(side) for side in SIDES}
        seconds = time_pairs(configs, options.pairs)

    ratios = [b / a for a, b in zip(seconds["plain"], seconds["plugin"], strict=True)]
    result = {
        "case": {"batch": options.batch, "length": options.length, "prompt_share": options.prompt_share},
        "seconds": seconds,
        "time_ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "peak_bytes": memory,
        "memory_ratio": memory["plugin"] / memory["plain"],
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))
    print(f"{options.batch} x {options.length} tokens, prompt share {options.prompt_share:.2f}, {options.pairs} pairs")
    print("            median s     peak GiB")
    for side in SIDES:
        print(f"{side:8} {statistics.median(seconds[side]):11.2f} {memory[side] / 2**30:12.2f}")
    print(
        f"ratio    {statistics.median(ratios):11.2f} {result['memory_ratio']:12.2f}"
        f"      (time: {min(ratios):.2f} to {max(ratios):.2f} over the pairs)"
    )
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
