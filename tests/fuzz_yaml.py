"""Mutated example configurations: number N of a seed is always the same."""

from __future__ import annotations

import math
import random
from typing import Any

import yaml
from material import ROOT

from sstoken_plugin.selection.config import CHANGING, HISTORIES
from sstoken_plugin.selection.selectors import SELECTORS

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
    "min_probability": [1e-9, 0.05, 0.999999, 1, 0, "0.1", 5, "5%", math.nan],
    "warmup_ratio": [0, 0.0, 1, 1.0, 0.5, 1e-9],
    "warmup_selector": ["attention", "all", "random", "rel"],
    "attention_layer": [-1, -3, -4, 0, 2, 3, 1.0, 1.5],
    "history": [*HISTORIES, "Initial", "ADAPTER", "MODEL", "ADAPTER/adapter_config.json", "~", "/"],
    "history_ema_decay": [0, 0.5, 0.999999999, 1],
    "history_update_steps": [1, 2, 1.0, 0.5, 10**12],
    "history_device": ["auto", "model", "cpu", "cuda", "cuda:0"],
    "history_cache": ["CACHE", "CACHE/a/b", "FILE/below", "/proc/none", "~missing-user/x", "ADAPTER"],
    "keep_eos": [True, False, "yes", "no", "perhaps", 1, 2],
    "seed": [0, 1, 2**32 - 1, 2**32, 1.0],
    "report": [True, False, "no"],
    "report_samples": [1, 12, 100, 101, 0, 1.0, 2.5],
    "report_seconds": [1e-9, 0.5, 5, None, 0, math.inf],
    "report_upload": [True, False, "no", 2],
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
    rng = random.Random(f"{seed}/{number}")
    example = rng.choice(sorted((ROOT / "example_configs").glob("*.yaml")))
    raw = yaml.safe_load(example.read_text())
    block: Pairs = [*raw.pop("sstoken").items(), ("report", False)]
    # An example's own cache lies where that example is run from.
    block = [(key, "CACHE" if key == "history_cache" else value) for key, value in block]
    raw |= {"base_model": "MODEL", "datasets": [{"path": "CHATS", "type": "chat_template"}]}
    raw |= {"output_dir": "OUT", "dataset_prepared_path": "PREPARED"}
    raw |= LOCAL
    pairs: Pairs = [(key, value) for key, value in raw.items() if value is not None]
    for _ in range(rng.choice([1, 2, 2, 3, 3, 4])):
        if rng.random() < 0.55:
            _mutate_block(rng, block)
        else:
            _mutate_rest(rng, pairs)
    shape = rng.random()
    if shape < 0.02:
        pairs.append(("sstoken", rng.choice([*WRONG, "on"])))
    elif shape < 0.04:
        pairs += [("sstoken", block), ("sstoken", [("ratio", 0.3), ("report", False)])]
    else:
        pairs.append(("sstoken", block))
    return example.stem, pairs


def _mutate_block(rng: random.Random, block: Pairs) -> None:
    key = rng.choice(list(VALUES))
    kind = rng.random()
    if kind < 0.45:
        _set(block, key, rng.choice(VALUES[key]))
        if rng.random() < 0.3:
            # Histories and their settings only meet by chance otherwise.
            _set(block, "history", rng.choice([*CHANGING, "ADAPTER", "MODEL", "initial"]))
    elif kind < 0.7:
        _set(block, key, rng.choice(WRONG))
    elif kind < 0.8:
        block.insert(rng.randrange(len(block) + 1), (key, rng.choice(VALUES[key])))
    elif kind < 0.9:
        del block[rng.randrange(len(block))]
        block[:] = block or [("report", False)]
    else:
        block.append((rng.choice(MISSPELT), rng.choice([0.5, None, "x"])))


def _mutate_rest(rng: random.Random, pairs: Pairs) -> None:
    kind = rng.random()
    if kind < 0.08:
        pairs.append((rng.choice(OUTSIDE), rng.choice([0.5, {"ratio": 0.5}, None, [1]])))
    elif kind < 0.14:
        key, _ = rng.choice(pairs)
        _set(pairs, key, None)
        if rng.random() < 0.5:
            del pairs[-1]
    elif kind < 0.2:
        # Again, with the last one in force.
        pairs.append(rng.choice(pairs))
    else:
        for key, value in rng.choice(AXOLOTL).items():
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
