"""What the benchmarks share: cases, trainers ready to step, paired times, peak memory, a file of results.

Both sides of a case are Axolotl's own trainer on the same model and the same batches; they differ in the plugin and
nothing else. What is timed is `Trainer.training_step` (forward, loss, backward), the optimizer step included. Steps
alternate, plain then plugin, and the ratio is taken pair by pair, so that a machine whose speed drifts does no harm.
Peak memory is that of a process of its own for each side, because a process never gives its peak back. There, large
tensors are returned to the system as soon as they are freed: else what is measured is how the C library's heap breaks
into pieces, which moves a peak by several percent from run to run, on both sides. Time is that under the C library as
it comes, unless a case says otherwise.
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
RESULTS = ROOT / "outputs" / "benchmarks"
WARMUP_STEPS = 2
# For glibc: a fixed size from which on memory is the system's own; and no memory given back to it at all, as in torch's
# allocator for GPUs. Page faults of large blocks that are asked for anew each step can outweigh what a case is to show.
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
NEVER_FREED = {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
# Different batches of a case; then they come again.
BATCHES = 8
SIDES = ("plain", "plugin")
LORA = {
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
}


@dataclass(frozen=True)
class Case:
    """A run of Axolotl, with and without the plugin.

    Attributes:
        batch: rows of a micro-batch.
        length: tokens of a row.
        prompt_share: of the tokens of a sample.
        samples_per_row: more than 1 packs rows.
        changes: keys of the YAML, on both sides.
        block: of `sstoken:`; REL counts from the first step, and losses of the history are kept in a warm case alone.
        warm: whether it has.
        model: folder of the base model.
        environment: variables of the process whose steps are timed.
    """

    batch: int = 2
    length: int = 512
    prompt_share: float = 1 / 3
    samples_per_row: int = 1
    changes: dict[str, Any] = field(default_factory=lambda: dict(LORA))
    block: dict[str, Any] = field(default_factory=dict)
    warm: bool = False
    model: Path = MODEL
    environment: dict[str, str] = field(default_factory=dict)

    def data(self, folder: Path, samples: int) -> Path:
        """Write samples that fill the rows, words of our own, and return the file."""
        file = folder / f"data-{self.length}-{self.prompt_share:.3f}-{self.samples_per_row}-{samples}.jsonl"
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        length = self.length // self.samples_per_row
        prompt = int(length * self.prompt_share)
        lines = []
        for index in range(samples):
            text = [words[(index * 7 + place * (1 + index % 3)) % 10] for place in range(length - 1)]
            segments = [
                {"label": False, "text": " ".join(text[:prompt])},
                {"label": True, "text": " " + " ".join(text[prompt:])},
            ]
            lines.append(json.dumps({"segments": segments}))
        file.write_text("\n".join(lines))
        return file

    def yaml(self, side: str, folder: Path, samples: int | None = None) -> dict[str, Any]:
        """Return the YAML of one side."""
        samples = samples or BATCHES * self.batch * self.samples_per_row
        config = {
            "base_model": str(self.model),
            "datasets": [{"path": str(self.data(folder, samples)), "type": "input_output"}],
            "dataset_prepared_path": str(folder / f"prepared-{side}"),
            "output_dir": str(folder / side),
            "sequence_len": self.length,
            "pad_to_sequence_len": True,
            "sample_packing": self.samples_per_row > 1,
            "micro_batch_size": self.batch,
            "gradient_accumulation_steps": 1,
            "max_steps": 100,
            "learning_rate": 1e-4,
            "optimizer": "adamw_torch",
            "lr_scheduler": "constant",
            "attn_implementation": "sdpa",
            # Worker processes that start with an epoch would slow its first step down, on both sides.
            "dataloader_num_workers": 0,
            "dataloader_prefetch_factor": None,
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "save_strategy": "no",
            "seed": 42,
        }
        if side == "plugin":
            block = {"warmup_ratio": 0.0, "report": False, "history_cache": False, **self.block}
            if self.warm:
                block["history_cache"] = str(folder / "cache")
            config |= {"plugins": ["sstoken"], "sstoken": block}
        return {**config, **self.changes}


def load(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return Axolotl's configuration and data set."""
    import yaml
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from transformers import set_seed

    PluginManager.get_instance().plugins.clear()
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        cfg = load_cfg(str(file))
    set_seed(0)
    return cfg, load_datasets(cfg=cfg)


def build(config: dict[str, Any]) -> tuple[Any, Iterator[Any]]:
    """Return a trainer ready to train, and an iterator over its batches."""
    from axolotl.train import setup_model_and_trainer

    cfg, data = load(config)
    trainer = setup_model_and_trainer(cfg, data)[0]
    trainer.state.max_steps = config["max_steps"]
    trainer.create_optimizer()
    if "sstoken" in config:
        trainer.sstoken.begin()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.config.use_cache = False
    return trainer, endless(trainer)


def endless(trainer: Any) -> Iterator[Any]:
    """Yield batch after batch, epoch after epoch."""
    while True:
        yield from trainer.get_train_dataloader()


def step(trainer: Any, batch: Any) -> float:
    """Run one optimizer step and return its seconds."""
    start = time.perf_counter()
    trainer.training_step(trainer.model, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    selection = getattr(getattr(trainer, "sstoken", None), "selection", None)
    losses = None if selection is None else selection.history
    if losses is not None and losses.history is not None:
        losses.history.after_step(trainer.model, trainer.state.global_step + 1)
    seconds = time.perf_counter() - start
    trainer.state.global_step += 1
    return seconds


def fill_cache(config: dict[str, Any]) -> None:
    """Compute the history losses of a configuration's data set."""
    from sstoken_plugin.history.scoring import score, work_left

    trainer, _ = build(config)
    losses = trainer.sstoken.selection.history
    data = trainer.train_dataset
    for _ in score(losses, trainer.model, data, work_left(losses, data), 2048):
        pass


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


def peak_bytes() -> int:
    """Return the peak of this process's memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of_steps(config: dict[str, Any], steps: int = 3) -> int:
    """Return the peak of this process's memory in bytes, after a few steps."""
    trainer, batches = build(config)
    for _ in range(steps):
        step(trainer, next(batches))
    return peak_bytes()


def in_child(module: str, function: str, *arguments: Any, **environment: str) -> Any:
    """Call a function of a benchmark in a process of its own, which starts small, and return what it returns."""
    code = (
        "import importlib, json, sys; sys.path.insert(0, sys.argv[1]); module = importlib.import_module(sys.argv[2]); "
        "result = getattr(module, sys.argv[3])(*json.loads(sys.argv[4])); print('RESULT', json.dumps(result))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), module, function, json.dumps(arguments)]
    environment = {**os.environ, "AXOLOTL_LOG_LEVEL": "WARNING", **environment}
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(output.rsplit("RESULT", 1)[1])


def peaks(configs: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return the peak memory of a few steps of each side, in bytes."""
    return {side: in_child("harness", "peak_of_steps", config, **FREED_AT_ONCE) for side, config in configs.items()}


def measure(case: Case, pairs: int) -> dict[str, Any]:
    """Return time and peak memory of a step of both sides, and their ratios."""
    with tempfile.TemporaryDirectory() as name:
        configs = {side: case.yaml(side, Path(name)) for side in SIDES}
        if case.warm:
            in_child("harness", "fill_cache", configs["plugin"])
        memory = peaks(configs)
        return ratios(in_child("harness", "time_pairs", configs, pairs, **case.environment), memory)


def ratios(seconds: dict[str, list[float]], memory: dict[str, int], side: str = "plugin") -> dict[str, Any]:
    """Return the figures of a side beside the plain ones, with their ratios."""
    sides = ("plain", side)
    each = [own / plain for plain, own in zip(*(seconds[name] for name in sides), strict=True)]
    return {
        "seconds": {name: seconds[name] for name in sides},
        "time_ratio": spread(each),
        "peak_bytes": {name: memory[name] for name in sides},
        "memory_ratio": memory[side] / memory["plain"],
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median and range of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def asked(description: str | None, names: Iterable[str], pairs: int, **numbers: int) -> argparse.Namespace:
    """Read the command line of a benchmark and make sure that the base model is there.

    Args:
        description: of the command.
        names: of what it can measure.
        pairs: how many pairs it takes of each unless told.
        numbers: further options, with what they are unless told.

    Returns:
        `only`, the names to measure, `pairs`, and the further ones.
    """
    names = list(names)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    for name, number in {"pairs": pairs, **numbers}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    unpack_model()
    return options


def unpack_model() -> None:
    """Make sure that the base model is there."""
    from demo.model import unpack

    unpack(MODEL)


def write_random_model(folder: Path, kind: str, **sizes: int) -> None:
    """Write a random model with SmolLM2's tokenizer, unless it is there.

    Args:
        folder: where to.
        kind: its `model_type` in transformers.
        sizes: of its configuration.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

    done = folder / "complete"
    if done.exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CONFIG_MAPPING[kind](tie_word_embeddings=True, **ids, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done.touch()


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    names = ("axolotl", "torch", "transformers", "peft", "sstoken-plugin")
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version()} | {
        name: _version(name) for name in names
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def save(name: str, rows: dict[str, Any]) -> Path:
    """Write results with the machine that they are from, beside rows that an earlier call left, and return the file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    here = machine()
    before = json.loads(file.read_text()) if file.exists() else {}
    kept = before.get("rows", {}) if before.get("machine") == here else {}
    file.write_text(json.dumps({"machine": here, "rows": {**kept, **rows}}, indent=1))
    return file
