"""Throw mutated example configurations at Axolotl with the plugin: `python tests/fuzz.py --count 500 --seed 0`.

Each configuration must validate and take a training step on a tiny model, or stop with a message that names a key.
Configuration N of a seed is always the same: `--first N --count 1` repeats it, and `--show` prints its YAML.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import yaml
from material import MODELS, ROOT, write_chats, write_tiny_llama

import sstoken_plugin
import sstoken_startup
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.selectors import SELECTORS

LIMIT_SECONDS = 120
BAD = ("HUNG", "FELL IN PLUGIN", "NAMES NO KEY", "SILENT")
OUTCOMES = ("trained", "refused by us", "refused by Axolotl", "fell in Axolotl", *BAD)

# A key may stand twice in a YAML, so a configuration is a list of pairs, and so is its block.
Pairs = list[tuple[str, Any]]

# What a CPU and a model of 3 layers need in place of what an example says; None removes the key.
LOCAL: dict[str, Any] = {
    "chat_template": "tokenizer_default",
    "chat_template_jinja": None,
    "special_tokens": None,
    "dataset_num_proc": 1,
    "sequence_len": 256,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 1,
    "optimizer": "adamw_torch",
    "attn_implementation": "sdpa",
    "lora_r": 4,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "saves_per_epoch": None,
}

# Values that are wrong for most keys; FOLDER, FILE and so on are paths that `write` fills in.
WRONG = [
    [],
    [0.5],
    {},
    {"ratio": 0.5},
    True,
    False,
    "0.5",
    "1",
    None,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    0,
    1,
    -0.0,
    1e308,
    5e-324,
    10**30,
    -(10**30),
    2**32,
    "",
    " ",
    "héllo 模型",
    "\x00",
    "MISSING",
    "FILE",
    "EMPTY",
]
# Values inside the bounds or next to them.
VALUES: dict[str, list[Any]] = {
    "selector": [*SELECTORS, "REL", "sstokn"],
    "ratio": [1e-9, 0.01, 0.5, 0.999999, 1.0, 1, "0.4", 1.0000001, 60, "60%", "0,6", math.nan],
    "gamma": [0, 1e-9, 0.5, 1, 1.0000001, 50, "50 %"],
    "warmup_ratio": [0, 0.0, 1, 1.0, 0.5, 1e-9],
    "warmup_selector": ["attention", "all", "random", "rel"],
    "attention_layer": [-1, -3, -4, 0, 2, 3, 1.0, 1.5],
    "history": ["initial", "ema", "snapshot", "Initial", "ADAPTER", "MODEL", "ADAPTER/adapter_config.json", "~", "/"],
    "history_ema_decay": [0, 0.5, 0.999999999, 1],
    "history_update_steps": [1, 2, 1.0, 0.5, 10**12],
    "history_device": ["auto", "model", "cpu", "cuda", "cuda:0"],
    "history_cache": ["CACHE", "CACHE/a/b", "FILE/below", "/proc/none", "~missing-user/x", "ADAPTER"],
    "keep_eos": [True, False, "yes", "no", "perhaps", 1, 2],
    "seed": [0, 1, 2**32 - 1, 2**32, 1.0],
    "report": [True, False, "no"],
}
MISSPELT = ["rato", "Ratio", "ratio ", "gama", "warmup", "history_model", "keep-eos", "héllo", "", "seeds", "report.x"]
OUTSIDE = [
    "sstoken_ratio", "ss_token", "SSToken", "sstoken.ratio", "sstoken.rtio", "sstoken.ratio.x", "sstokens",
    # Keys of the block at top level.
    "ratio", "gamma", "selector", "warmup_selector", "history", "history_cache", "keep_eos", "report",
]  # fmt: skip

# Other keys of Axolotl: each entry is a set of keys that come together.
AXOLOTL: list[dict[str, Any]] = [
    *({"rl": value} for value in ("dpo", "grpo", "kto", "", None, "nonsense")),
    *({"streaming": value} for value in (True, False)),
    {"pretraining_dataset": [{"path": "FILE"}]},
    {"pretraining_dataset": []},
    *(
        {"sample_packing": True, **more}
        for more in ({}, {"pad_to_sequence_len": True}, {"micro_batch_size": 1}, {"eval_sample_packing": True})
    ),
    {"adapter": "lora", "load_in_4bit": None},
    {"adapter": "qlora", "load_in_4bit": True},
    {"adapter": "qlora", "load_in_4bit": False},
    {"adapter": "none"},
    {"adapter": "llama-adapter"},
    {"lora_r": 0},
    {"lora_target_linear": False},
    {"lora_target_linear": None, "lora_target_modules": ["q_proj", "no_such_layer"]},
    {"lora_target_linear": None, "lora_target_modules": "all-linear"},
    {"lora_target_linear": None, "lora_target_modules": ["lm_head"]},
    {"lora_target_linear": None, "lora_target_parameters": ["mlp.up_proj.weight"]},
    *({"adapter": None, "load_in_4bit": None, **more} for more in ({}, {}, {"unfrozen_parameters": ["layers.2"]})),
    {"unfrozen_parameters": ["norm"]},
    {"peft_use_dora": True},
    {"peft_use_rslora": True},
    *(
        {"peft_init_lora_weights": value}
        for value in (True, False, "gaussian", "pissa", "pissa_niter_4", "olora", "eva", "orthogonal", "nonsense")
    ),
    {"lora_modules_to_save": ["embed_tokens", "lm_head"]},
    {"lora_modules_to_save": ["norm"]},
    {"lora_model_dir": "ADAPTER"},
    {"lora_model_dir": "MISSING"},
    {"lora_dropout": 1.0},
    {"lora_alpha": 0},
    {"load_in_8bit": True},
    {"load_in_4bit": True},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    {"gradient_checkpointing": "offload"},
    {"activation_offloading": True, "gradient_checkpointing": True},
    {"layer_offloading": True},
    {"val_set_size": 0.2, "eval_steps": 1},
    {"val_set_size": 2, "evals_per_epoch": 1},
    {"val_set_size": 0.2, "eval_steps": 1, "save_steps": 1, "save_strategy": None, "early_stopping_patience": 1},
    {"val_set_size": 0.2, "eval_steps": 1, "eval_sample_packing": False, "sample_packing": True},
    {"val_set_size": 0.2, "do_causal_lm_eval": True, "eval_steps": 1, "eval_causal_lm_metrics": ["perplexity"]},
    {"neftune_noise_alpha": 5},
    {"label_smoothing_factor": 0.1},
    {"label_smoothing_factor": 0.0},
    {"train_on_inputs": True},
    {"sequence_len": 1},
    {"sequence_len": 8},
    {"sequence_len": 24},
    {"sequence_len": 16, "sample_packing": True},
    {"sequence_len": 64, "excess_length_strategy": "truncate"},
    {"micro_batch_size": 1},
    {"micro_batch_size": 64},
    {"micro_batch_size": 0},
    {"gradient_accumulation_steps": 5},
    {"gradient_accumulation_steps": 0},
    {"num_epochs": 0},
    {"num_epochs": 0.01},
    {"num_epochs": 1e9},
    {"max_steps": None, "num_epochs": 0.1},
    {"max_steps": 0},
    {"max_steps": 2, "save_strategy": "steps", "save_steps": 1},
    {"save_strategy": "epoch", "max_steps": None, "num_epochs": 1, "micro_batch_size": 12},
    *({"learning_rate": value} for value in (0, -1.0, 1e308, 1e-300, math.nan, math.inf, "fast")),
    {"logging_steps": 7},
    {"logging_steps": 0},
    {"logging_steps": 0.5},
    {"loraplus_lr_ratio": 16},
    {"curriculum_sampling": True},
    {"group_by_length": True},
    {"auto_resume_from_checkpoints": True},
    {"resume_from_checkpoint": "MISSING"},
    {"resume_from_checkpoint": "EMPTY"},
    {"seed": None},
    {"seed": -1},
    {"seed": 2**32},
    {"seed": "42"},
    {"relora": True, "relora_prune_ratio": 0.9, "jagged_restart_steps": 1},
    {"lisa_n_layers": 1, "lisa_step_interval": 1, "lisa_layers_attribute": "model.layers", "adapter": None},
    {"fsdp_config": {"fsdp_version": 2}},
    {"deepspeed": "MISSING"},
    {"torch_compile": False},
    {"chunked_cross_entropy": True},
    {"use_eaft": True},
    {"orpo_alpha": 0.1},
    {"trainer_cls": "transformers.Trainer"},
    {"reward_model": True},
    {"processor_type": "AutoProcessor"},
    *({"context_parallel_size": value} for value in (1, 2, "2", [2], None)),
    {"tensor_parallel_size": 2},
    {"sequence_parallel_degree": "two"},
    {"include_tkps": False},
    {"eot_tokens": ["<|im_end|>"]},
    {"eot_tokens": ["no such token"]},
    {"special_tokens": {"pad_token": "<pad>", "eos_token": "<|im_end|>"}},
    {"tokens": ["<new>"], "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    {"attn_implementation": "eager"},
    {"attn_implementation": "flex_attention"},
    {"attn_implementation": None},
    {"plugins": ["sstoken", "sstoken"]},
    {"plugins": "sstoken"},
    {"plugins": ["sstoken_plugin.SSTokenPlugin"]},
    {"plugins": ["axolotl.integrations.liger.LigerPlugin", "sstoken"]},
    # The plugin left out, or misspelt.
    *({"plugins": value} for value in (None, [], ["axolotl.integrations.grokfast.GrokfastPlugin"])),
    *({"plugins": [value]} for value in ("sstokn", "ss_token", "ssToken", "sstoken_plugin", "sstoken_plugin.SSToken")),
    {"max_grad_norm": 0},
    {"dataloader_drop_last": True, "micro_batch_size": 64},
    {"shuffle_merged_datasets": False},
    {"roles_to_train": []},
    {"optimizer": "adamw_bnb_8bit"},
    {"optimizer": "lion_pytorch"},
    {"optimizer": "muon"},
    {"lr_scheduler": "one_cycle"},
]


def generate(seed: int, number: int) -> tuple[str, Pairs]:
    """Return the name of the example and its mutated pairs: the same for the same seed and number."""
    dice = random.Random(f"{seed}/{number}")
    example = dice.choice(sorted((ROOT / "example_configs").glob("*.yaml")))
    raw = yaml.safe_load(example.read_text())
    block: Pairs = [*raw.pop("sstoken").items(), ("report", False)]
    # An example's own cache lies where that example is run from.
    block = [(key, "CACHE" if key == "history_cache" else value) for key, value in block]
    raw |= {"base_model": "MODEL", "datasets": [{"path": "CHATS", "type": "chat_template"}]}
    raw |= {"output_dir": "OUT", "dataset_prepared_path": "PREPARED"}
    raw |= LOCAL
    pairs: Pairs = [(key, value) for key, value in raw.items() if value is not None]
    for _ in range(dice.choice([1, 2, 2, 3, 3, 4])):
        if dice.random() < 0.55:
            _mutate_block(dice, block)
        else:
            _mutate_rest(dice, pairs)
    shape = dice.random()
    if shape < 0.02:
        pairs.append(("sstoken", dice.choice([*WRONG, "on"])))
    elif shape < 0.04:
        pairs += [("sstoken", block), ("sstoken", [("ratio", 0.3), ("report", False)])]
    else:
        pairs.append(("sstoken", block))
    return example.stem, pairs


def _mutate_block(dice: random.Random, block: Pairs) -> None:
    key = dice.choice(list(VALUES))
    kind = dice.random()
    if kind < 0.45:
        _set(block, key, dice.choice(VALUES[key]))
        if dice.random() < 0.3:
            # Histories and their settings only meet by chance otherwise.
            _set(block, "history", dice.choice(["ema", "snapshot", "ADAPTER", "MODEL", "initial"]))
    elif kind < 0.7:
        _set(block, key, dice.choice(WRONG))
    elif kind < 0.8:
        block.insert(dice.randrange(len(block) + 1), (key, dice.choice(VALUES[key])))
    elif kind < 0.9:
        del block[dice.randrange(len(block))]
        block[:] = block or [("report", False)]
    else:
        block.append((dice.choice(MISSPELT), dice.choice([0.5, None, "x"])))


def _mutate_rest(dice: random.Random, pairs: Pairs) -> None:
    kind = dice.random()
    if kind < 0.08:
        pairs.append((dice.choice(OUTSIDE), dice.choice([0.5, {"ratio": 0.5}, None, [1]])))
    elif kind < 0.14:
        key, _ = dice.choice(pairs)
        _set(pairs, key, None)
        if dice.random() < 0.5:
            del pairs[-1]
    elif kind < 0.2:
        # Again, with the last one in force.
        pairs.append(dice.choice(pairs))
    else:
        for key, value in dice.choice(AXOLOTL).items():
            _set(pairs, key, value)


def _set(pairs: Pairs, key: str, value: Any) -> None:
    pairs[:] = [pair for pair in pairs if pair[0] != key] + [(key, value)]


def to_yaml(pairs: Pairs, paths: dict[str, str]) -> str:
    """Return the text of a YAML in which a key may stand twice."""

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            head, slash, tail = value.partition("/")
            return paths[head] + slash + tail if head in paths else value
        if isinstance(value, list):
            return [fill(item) for item in value]
        return {key: fill(item) for key, item in value.items()} if isinstance(value, dict) else value

    def flow(value: Any) -> str:
        return yaml.safe_dump([fill(value)], allow_unicode=True, default_flow_style=True, width=10**6)[1:-2]

    def line(key: str, value: Any) -> str:
        return f"{flow(key)}: {flow(value)}"

    text = ""
    for key, value in pairs:
        if key == "sstoken" and isinstance(value, list) and all(isinstance(pair, tuple) for pair in value) and value:
            text += "sstoken:\n" + "".join(f"  {line(*pair)}\n" for pair in value)
        else:
            text += line(key, value) + "\n"
    return text


def prepare(folder: Path) -> dict[str, str]:
    """Write model, adapter and data once, and import what every run needs; return the paths by their names."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    from demo.model import unpack

    unpack(MODELS / "smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "smollm2-135m-instruct")
    write_tiny_llama(folder / "model", tokenizer)
    write_chats(folder / "chats.jsonl")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(folder / "model"), adapter).save_pretrained(folder / "adapter")
    (folder / "empty").mkdir()
    (folder / "file").write_text("nothing")

    for module in (
        "axolotl.cli.train",
        "axolotl.common.datasets",
        "bitsandbytes",
        "sstoken_plugin.axolotl.trainer",
        "sstoken_plugin.training.callbacks",
    ):
        importlib.import_module(module)

    # One folder of prepared data for all: Axolotl starts processes to write one, which takes longer than a run.
    names = {"PREPARED": "prepared", "MODEL": "model", "ADAPTER": "adapter", "CHATS": "chats.jsonl", "EMPTY": "empty"}
    names |= {"FILE": "file", "MISSING": "no/such"}
    return {key: str(folder / name) for key, name in names.items()}


def run_one(seed: int, number: int, common: dict[str, str], folder: Path) -> None:
    """In a child: train one configuration and write `result.json`."""
    os.setsid()
    folder.mkdir()
    os.chdir(folder)
    log = os.open("log.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    example, pairs = generate(seed, number)
    paths = common | {"OUT": str(folder / "out"), "CACHE": str(folder / "cache")}
    text = to_yaml(pairs, paths)
    Path("config.yaml").write_text(text, encoding="utf-8")
    outcome, detail, stack = judge(text)
    if outcome == "FELL IN PLUGIN":
        # Our trainer is on the stack of everything that goes wrong in a step: is it ours without the plugin?
        child = os.fork()
        if not child:
            Path("control.json").write_text(json.dumps(judge(text, without_plugin=True)))
            os._exit(0)
        os.waitpid(child, 0)
        control = json.loads(Path("control.json").read_text())
        if control[0] in ("fell in Axolotl", "refused by Axolotl") and control[1] == detail:
            outcome = "fell in Axolotl"
    Path("result.json").write_text(json.dumps([outcome, f"[{example}] {detail}", stack]))


def judge(text: str, *, without_plugin: bool = False) -> tuple[str, str, str]:
    """Train a YAML in this process and return the outcome, the message and the stack."""
    try:
        lines, selection = train(text, without_plugin=without_plugin)
    except (Exception, SystemExit) as error:
        detail = f"{type(error).__name__}: {error}"
        return outcome_of(error), detail, "".join(traceback.format_exception(error))
    return (*outcome_of_training(text, lines, selection), "")


def train(text: str, *, without_plugin: bool) -> tuple[list[dict[str, Any]], Any]:
    """Do what `python -m axolotl.cli.train` does; return the logged lines and the selection."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import train as axolotl_train

    file = Path("config.yaml")
    if without_plugin:
        raw = yaml.safe_load(text)
        raw = {key: value for key, value in raw.items() if key != "plugins" and not key.startswith("sstoken")}
        file = Path("control.yaml")
        file.write_text(yaml.safe_dump(raw))
    plugins = PluginManager.get_instance()
    plugins.plugins.clear()
    cfg = load_cfg(str(file))
    data = plugins.load_datasets(cfg, preprocess=False) or load_datasets(cfg=cfg)
    _, _, trainer = axolotl_train(cfg=cfg, dataset_meta=data)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return lines, getattr(trainer, "selection", None)


def outcome_of_training(text: str, lines: list[dict[str, Any]], selection: Any) -> tuple[str, str]:
    """A run that trains must have selected, with the settings that the YAML gives."""
    raw = yaml.safe_load(text)
    wanted = dict(raw.get("sstoken") or {})
    wanted |= {key.removeprefix("sstoken."): value for key, value in raw.items() if key.startswith("sstoken.")}
    if "sstoken" not in str(raw.get("plugins")):
        if raw.get("sstoken") is not None:
            return "SILENT", "the run trained without the plugin, and its block was read by nobody"
        return "trained", "without the plugin, which the YAML does not name"
    if selection is None:
        return "SILENT", "the run trained without the selection"
    if selection.config != SSTokenConfig.from_block(wanted):
        return "SILENT", f"other settings are in force: {selection.config}"
    kept = [line.get("sstoken/selected_ratio") for line in lines]
    if kept and None in kept and "no response token" not in Path("log.txt").read_text(errors="replace"):
        return "SILENT", f"no metrics of the selection in {lines}"
    ratio = 1.0 if selection.config.selector == "all" else selection.config.ratio
    if any(share is not None and not ratio - 1e-6 <= share <= 1 for share in kept):
        return "SILENT", f"kept {kept} instead of {ratio}"
    return "trained", f"{len(lines)} lines, kept {kept}"


def outcome_of(error: BaseException) -> str:
    """Tell a refusal from a fault, and ours from Axolotl's."""
    from pydantic import ValidationError

    ours = (os.path.dirname(sstoken_plugin.__file__) + os.sep, sstoken_startup.__file__)
    origins = [error]
    if isinstance(error, ValidationError):
        # Our refusals reach the user inside Axolotl's list of faults.
        faults = error.errors()
        origins = [
            fault["ctx"]["error"] for fault in faults if isinstance(fault.get("ctx", {}).get("error"), Exception)
        ]
        if not any(_files(origin)[-1:] and _files(origin)[-1].startswith(ours) for origin in origins):
            named = any("sstoken" in map(str, fault["loc"]) for fault in faults)
            return "refused by us" if named else "refused by Axolotl"
    for origin in origins:
        files = _files(origin)
        project = [file for file in files if file.startswith(ours) or f"{os.sep}axolotl{os.sep}" in file]
        if not project or not project[-1].startswith(ours):
            continue
        if not isinstance(origin, ValueError) or not files[-1].startswith(ours):
            return "FELL IN PLUGIN"
        return "refused by us" if names_a_key(str(origin)) else "NAMES NO KEY"
    if isinstance(error, SystemExit):
        return "refused by Axolotl"
    last = [file for file in _files(error) if f"{os.sep}axolotl{os.sep}" in file][-1:]
    is_check = bool(last) and re.search(r"schemas|utils/config|cli/config", last[0]) is not None
    return "refused by Axolotl" if isinstance(error, ValueError) and is_check else "fell in Axolotl"


def _files(error: BaseException) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def names_a_key(message: str) -> bool:
    """Whether a message of ours names a key of the YAML, which it does as `key: value`, `sstoken.key` or in ticks."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    keys = {"sstoken", *AxolotlInputConfig.model_fields}
    return bool(keys & set(re.findall(r"[a-zA-Z_0-9]+", message)))


def run_all(numbers: list[int], seed: int, jobs: int, folder: Path, keep: bool) -> dict[int, list[str]]:
    """Run each configuration in a child forked from this process, `jobs` at a time."""
    common = prepare(folder)
    waiting, running = collections.deque(numbers), {}
    results: dict[int, list[str]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.popleft()
            sys.stdout.flush()
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    run_one(seed, number, common, folder / str(number))
                os._exit(0)
            running[child] = (number, time.monotonic())
        time.sleep(0.05)
        for child, (number, start) in list(running.items()):
            home, late = folder / str(number), time.monotonic() - start > LIMIT_SECONDS
            if not late and os.waitpid(child, os.WNOHANG) == (0, 0):
                continue
            if late:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            del running[child]
            result = home / "result.json"
            results[number] = (
                json.loads(result.read_text())
                if result.exists()
                else ["HUNG" if late else "FELL IN PLUGIN", "no result: see its log", ""]
            )
            outcome, detail, stack = results[number]
            print(
                f"{number:4d} {time.monotonic() - start:5.1f} s  {outcome}: {' '.join(detail.split())[:300]}",
                flush=True,
            )
            if outcome in BAD:
                print(stack + (home / "config.yaml").read_text(), flush=True)
            if not keep:
                shutil.rmtree(home)
    return results


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="number of configurations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--keep", type=Path, help="folder, not there yet, that keeps every run's YAML, log and result")
    parser.add_argument("--show", action="store_true", help="print the YAML files and run nothing")
    options = parser.parse_args()
    numbers = list(range(options.first, options.first + options.count))
    if options.show:
        for number in numbers:
            example, pairs = generate(options.seed, number)
            print(f"# {number}, from {example}\n{to_yaml(pairs, {})}")
        return 0
    folder = options.keep or Path(tempfile.mkdtemp(prefix="sstoken-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = run_all(numbers, options.seed, options.jobs, folder.resolve(), keep=options.keep is not None)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    counts = collections.Counter(outcome for outcome, _, _ in results.values())
    fallen = collections.Counter(
        detail.split("] ", 1)[1][:100] for kind, detail, _ in results.values() if "fell in" in kind
    )
    for message, count in fallen.most_common():
        print(f"Axolotl's own: {count} x {' '.join(message.split())}")
    print(", ".join(f"{outcome}: {counts[outcome]}" for outcome in OUTCOMES))
    return int(any(counts[outcome] for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
