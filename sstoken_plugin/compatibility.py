"""What the rest of a YAML must not ask for beside token selection: each refusal is one sentence.

Works on plain mappings, so that the same rules serve the raw YAML, the validated one and the tests.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin import releases
from sstoken_plugin.config import CHANGING, SSTokenConfig, nearest

NAMES = ("sstoken", "sstoken_plugin.SSTokenPlugin", "sstoken_plugin.plugin.SSTokenPlugin")

# Key of the YAML: why it cannot run beside the selection, and what to do.
REFUSED = {
    "rl": "trains on preferences or rewards, not on labelled tokens",
    "reward_model": "trains a reward model, which has no per-token loss",
    "process_reward_model": "trains a reward model, which has no per-token loss",
    "trainer_cls": "replaces the trainer that the selection is part of",
    "use_eaft": "brings its own loss over all response tokens",
    "use_dft": "brings its own loss over all response tokens",
    "liger_use_token_scaling": "multiplies the loss of each token by its probability",
    "diffusion_lm": "trains a diffusion model, whose tokens have no left-to-right loss",
    "diffusion_decision": "trains a diffusion model, whose tokens have no left-to-right loss",
    "orpo_alpha": "brings its own loss over pairs of answers",
    "relora": "merges the adapter into the base weights, so that the history is lost",
    "pretraining_dataset": "streams text without prompts and labels, which has not been tested with selection",
    "streaming": "streams its data, which has not been tested with selection",
    "is_multimodal": "trains a multimodal model, and selection reads text tokens only",
    "processor_type": "trains a multimodal model, and selection reads text tokens only",
    "label_smoothing_factor": "changes the loss of a token, which selection compares with the history's",
}
# Each of them sets the others, in the releases that know them.
_SPLIT = (
    "splits a sample over ranks, and selection ranks whole samples (it is set by context_parallel_size, by size in the "
    "block context_parallel, and by sequence_parallel_degree)"
)
# Keys, one inside a block with a dot, that split a sample or a layer over so many ranks.
REFUSED_ABOVE_ONE = {
    "context_parallel_size": _SPLIT,
    "context_parallel.size": _SPLIT,
    "sequence_parallel_degree": _SPLIT,
    "expert_parallel_size": "splits the experts over ranks, which has not been tested with selection",
    "tensor_parallel_size": "splits the output head over ranks, which has not been tested with selection",
}
# Adapters that are out of force once PEFT has switched them off. Plugins of Axolotl may bring others, such as mixlora.
ADAPTERS = ("lora", "qlora", "mora")
# Keys that change losses and not the hash by which a cache tells one history from another.
REFUSED_WITH_CACHE = ("scaling_softmax", "qat", "fp8")
# Ways of training that should work and have not been run on what they are made for: docs/support.md.
UNTESTED = (
    "fsdp_config", "deepspeed", "layer_offloading", "tiled_mlp", "fp8", "qat", "nvfp4_merge_aware", "llmcompressor",
    "dense_mixer", "dp_shard_size", "fa_varlen_kwargs_in_collator", "cut_cross_entropy_accum_c_fp32", "optimizer: scao",
)  # fmt: skip
# Adapter initialisations that leave the base weights as they are.
PLAIN_INITS = (None, True, False, "gaussian")


def check(cfg: Mapping[str, Any]) -> SSTokenConfig:
    """Return the parsed `sstoken:` block of a whole YAML, or refuse the YAML.

    Args:
        cfg: the whole configuration, raw or validated.

    Raises:
        ValueError: one sentence that names the key and the mend.
    """
    _refuse_misplaced_keys(cfg)
    config = SSTokenConfig.from_block(cfg.get("sstoken"))
    for key, reason in REFUSED.items():
        if cfg.get(key):
            shown = key if isinstance(cfg[key], (Mapping, list)) else f"{key}: {cfg[key]}"
            raise ValueError(f"{shown} {reason}; remove `{key}` or take sstoken out of `plugins:`.")
    for key, reason in REFUSED_ABOVE_ONE.items():
        value = _nested(cfg, key)
        if _number(value) > 1:
            raise ValueError(f"{key}: {value} {reason}; remove it or take sstoken out of `plugins:`.")
    adapter = cfg.get("adapter")
    if isinstance(adapter, str) and adapter and adapter not in ADAPTERS:
        raise ValueError(
            f"adapter: {adapter} may train parts that stay in force when it is switched off, and the history would not "
            "be the first model; set `adapter: lora` or `adapter: qlora`, or take sstoken out of `plugins:`."
        )
    if releases.asks_for_fsdp1(cfg):
        raise ValueError(
            "fsdp_version: 1 flattens weights, so that neither an adapter nor a layer can be reached; set "
            "`fsdp_version: 2` beside `fsdp_config:`, or take sstoken out of `plugins:`."
        )
    if cfg.get("sample_packing") and not releases.packing_separates_samples(cfg):
        raise ValueError(
            f"attn_implementation: {cfg.get('attn_implementation')} lets the samples of a packed row see each other in "
            "this release of Axolotl, and selection scores a sample as if alone; set `attn_implementation: "
            "flash_attention_2` (from Axolotl 0.18 on also sdpa or eager), or `sample_packing: false`."
        )
    if config.needs_history:
        _refuse_unfit_history(cfg, config)
    if config.history_cache is not None:
        _refuse_unfit_cache(cfg, config.history_cache)
    return config


def expand(path: str) -> Path:
    """Return a path of the YAML with `~` and `~user` replaced, where there is such a user."""
    # Unlike Path.expanduser, it leaves an unknown user as it is instead of raising a RuntimeError.
    return Path(os.path.expanduser(path))


def fused_losses(cfg: Mapping[str, Any]) -> list[str]:
    """Keys of the YAML that fuse the output head with the loss, so that no token has a loss of its own."""
    keys = ("liger_fused_linear_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy")
    return [key for key in keys if cfg.get(key)]


def untested(cfg: Mapping[str, Any]) -> list[str]:
    """Keys of the YAML that ask for a way of training which nobody has tried with the selection."""
    named = (entry.partition(": ") for entry in UNTESTED)
    return [f"{key}{colon}{value}" for key, colon, value in named if (cfg.get(key) == value if value else cfg.get(key))]


def names_us(cfg: Mapping[str, Any]) -> bool:
    """Tell whether a YAML names the plugin; since 0.21 Axolotl takes `module:Class` too."""
    plugins = cfg.get("plugins")
    return isinstance(plugins, list | tuple) and any(str(name).replace(":", ".") in NAMES for name in plugins)


def _nested(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, or of one inside a block."""
    block, dot, inner = key.partition(".")
    value = cfg.get(block)
    if dot:
        return value.get(inner) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float:
    """Return the number that Axolotl will read, 0 for what it will refuse: in a raw YAML a number may be text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0


def _refuse_misplaced_keys(cfg: Mapping[str, Any]) -> None:
    for key in cfg:
        plain = re.sub(r"[^a-z]", "", str(key).lower())
        if key != "sstoken" and plain.startswith("sstoken"):
            rest = re.sub(r"^ss[_.\- ]*token[_.\- ]*", "", str(key).lower())
            inner = nearest(rest or "ratio", SSTokenConfig.model_fields)
            raise ValueError(
                f"{key} is not a key; settings of the selection go into the `sstoken:` block, as in "
                f"`sstoken: {{{inner}: ...}}`."
            )
        if key != "sstoken" and difflib.SequenceMatcher(None, plain, "sstoken").ratio() > 0.8:
            raise ValueError(f"{key} is not a key; the nearest one is `sstoken:`.")


def _refuse_unfit_cache(cfg: Mapping[str, Any], path: str) -> None:
    for key in REFUSED_WITH_CACHE:
        if cfg.get(key):
            raise ValueError(
                f"{key} changes losses, and sstoken.history_cache: {path} would give them to runs without it; remove "
                "one of the two."
            )
    try:
        unfit = not stat.S_ISDIR(expand(path).stat().st_mode)
    except FileNotFoundError:
        # Yet to be made.
        unfit = False
    except (OSError, ValueError):
        unfit = True
    if unfit:
        raise ValueError(
            f"sstoken.history_cache: {path!r} cannot be a folder; name a folder that can be written to, or remove "
            "history_cache."
        )


def _refuse_unfit_history(cfg: Mapping[str, Any], config: SSTokenConfig) -> None:
    if config.history_is_path:
        _refuse_unfit_folder(cfg, config)
    if cfg.get("lisa_n_layers"):
        raise ValueError(
            "lisa_n_layers switches layers on and off while the history keeps the weights that train at the start; "
            "remove it, or use sstoken.selector: attention, which needs no history."
        )
    for key, asked in (("history", config.history_is_path), ("history_cache", config.history_cache)):
        if asked and _zero_stage(cfg) == 3:
            raise ValueError(
                f"sstoken.{key}: {getattr(config, key)} needs every weight of a model, which ZeRO stage 3 does not "
                "give; use stage 2 or FSDP2, or leave history_cache out and set history to initial, ema or snapshot."
            )


def _refuse_unfit_folder(cfg: Mapping[str, Any], config: SSTokenConfig) -> None:
    folder = expand(config.history)
    if not os.path.isdir(folder):
        word = nearest(config.history, ("initial", *CHANGING))
        raise ValueError(
            f"sstoken.history: {config.history} is no folder, and none of initial, ema, snapshot; did you mean "
            f"'{word}'?"
        )
    if not any((folder / name).exists() for name in ("adapter_config.json", "config.json")):
        raise ValueError(
            f"sstoken.history: {config.history} holds neither adapter_config.json nor config.json; name an "
            "adapter folder or a full checkpoint."
        )
    if cfg.get("adapter") and cfg.get("peft_init_lora_weights") not in PLAIN_INITS:
        raise ValueError(
            f"peft_init_lora_weights: {cfg['peft_init_lora_weights']} changes the base weights that the adapter in "
            f"sstoken.history: {config.history} needs; remove peft_init_lora_weights, or set history: initial."
        )


def _zero_stage(cfg: Mapping[str, Any]) -> float:
    """Read the stage from DeepSpeed's settings: a file in the raw YAML, its content in the validated one."""
    settings = cfg.get("deepspeed")
    if isinstance(settings, str):
        try:
            settings = json.loads(Path(settings).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = None
    # Any other type is left to Axolotl and DeepSpeed, which refuse it in their own words.
    return _number(_nested(settings, "zero_optimization.stage")) if isinstance(settings, Mapping) else 0
