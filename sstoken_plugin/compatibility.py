"""What the rest of a YAML must not ask for beside token selection: each refusal is one sentence.

Works on plain mappings, so that the same rules serve the raw YAML, the validated one and the tests.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.config import CHANGING, SSTokenConfig, nearest

NAMES = ("sstoken", "sstoken_plugin.SSTokenPlugin", "sstoken_plugin.plugin.SSTokenPlugin")

# Key of the YAML: why it cannot run beside the selection, and what to do.
REFUSED = {
    "rl": "trains on preferences or rewards, not on labelled tokens",
    "reward_model": "trains a reward model, which has no per-token loss",
    "process_reward_model": "trains a reward model, which has no per-token loss",
    "trainer_cls": "replaces the trainer that the selection is part of",
    "use_eaft": "brings its own loss over all response tokens",
    "orpo_alpha": "brings its own loss over pairs of answers",
    "relora": "merges the adapter into the base weights, so that the history is lost",
    "pretraining_dataset": "streams text without prompts and labels, which has not been tested with selection",
    "streaming": "streams its data, which has not been tested with selection",
    "is_multimodal": "trains a multimodal model, and selection reads text tokens only",
    "processor_type": "trains a multimodal model, and selection reads text tokens only",
    "label_smoothing_factor": "changes the loss of a token, which selection compares with the history's",
}
REFUSED_ABOVE_ONE = {
    "context_parallel_size": "splits a sample over ranks, and selection ranks whole samples",
    "sequence_parallel_degree": "splits a sample over ranks, and selection ranks whole samples",
    "tensor_parallel_size": "splits the output head over ranks, which has not been tested with selection",
}
# Ways of training that should work and have not been run on what they are made for: docs/support.md.
UNTESTED = ("fsdp_config", "deepspeed", "layer_offloading", "tiled_mlp")
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
            raise ValueError(f"{key}: {cfg[key]} {reason}; remove `{key}` or take sstoken out of `plugins:`.")
    for key, reason in REFUSED_ABOVE_ONE.items():
        # Axolotl has yet to check the type in a raw YAML; its validated one is asked again.
        if isinstance(cfg.get(key), (int, float)) and cfg[key] > 1:
            raise ValueError(f"{key}: {cfg[key]} {reason}; set `{key}: 1` or take sstoken out of `plugins:`.")
    fsdp = cfg.get("fsdp_config") or {}
    if cfg.get("fsdp") or (fsdp and str(cfg.get("fsdp_version") or fsdp.get("fsdp_version")) != "2"):
        raise ValueError(
            "fsdp_version: 1 flattens weights, so that neither an adapter nor a layer can be reached; set "
            "`fsdp_version: 2` and use `fsdp_config:`, or take sstoken out of `plugins:`."
        )
    # Both are in the validated configuration only; Axolotl 0.17 has just the latter, and is right with it.
    separated = cfg.get("attn_decontaminates_packing", cfg.get("attn_supports_packing"))
    if cfg.get("sample_packing") and separated is False:
        raise ValueError(
            f"attn_implementation: {cfg.get('attn_implementation')} lets the samples of a packed row see each other in "
            "this release of Axolotl, and selection scores a sample as if alone; set `attn_implementation: "
            "flash_attention_2` (from Axolotl 0.18 on also sdpa or eager), or `sample_packing: false`."
        )
    if config.needs_history:
        _refuse_unfit_history(cfg, config)
    if config.history_cache is not None:
        _refuse_unfit_cache(config.history_cache)
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
    return [key for key in UNTESTED if cfg.get(key)]


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


def _refuse_unfit_cache(path: str) -> None:
    folder = expand(path)
    there = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    if "\0" in path or (there.exists() and not there.is_dir()):
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
    if not folder.is_dir():
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


def _zero_stage(cfg: Mapping[str, Any]) -> int:
    """Read the stage from DeepSpeed's settings: a file in the raw YAML, its content in the validated one."""
    settings = cfg.get("deepspeed") or {}
    if not isinstance(settings, Mapping):
        try:
            settings = json.loads(Path(settings).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Axolotl refuses it in its own words.
            return 0
    return int((settings.get("zero_optimization") or {}).get("stage") or 0)
