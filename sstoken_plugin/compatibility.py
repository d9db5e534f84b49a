"""What the rest of a YAML must not ask for beside token selection: each refusal is one sentence.

Works on plain mappings, so that the same rules serve the raw YAML, the validated one and the tests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from sstoken_plugin.config import SSTokenConfig, nearest

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
# Ways of training that should work and have not been run yet.
UNTESTED = ("fsdp", "fsdp_config", "deepspeed", "torch_compile", "layer_offloading")
# Adapter initialisations whose adapter does nothing before the first step.
PLAIN_LORA_INITS = (None, True, "gaussian")


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
        if (cfg.get(key) or 1) > 1:
            raise ValueError(f"{key}: {cfg[key]} {reason}; set `{key}: 1` or take sstoken out of `plugins:`.")
    if config.ranks_by_rel:
        _refuse_missing_history(cfg, config)
    return config


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
            inner = nearest(
                str(key).lower().removeprefix("sstoken").lstrip("_.-") or "ratio", SSTokenConfig.model_fields
            )
            raise ValueError(
                f"{key} is not a key; settings of the selection go into the `sstoken:` block, as in "
                f"`sstoken: {{{inner}: ...}}`."
            )
        if key != "sstoken" and difflib.SequenceMatcher(None, plain, "sstoken").ratio() > 0.8:
            raise ValueError(f"{key} is not a key; the nearest one is `sstoken:`.")


def _refuse_missing_history(cfg: Mapping[str, Any], config: SSTokenConfig) -> None:
    """`history: initial` is the adapter switched off: it needs an adapter that starts without effect."""
    instead = "use sstoken.selector: attention, which needs no history"
    if cfg.get("adapter") not in ("lora", "qlora"):
        raise ValueError(
            f"sstoken.history: initial needs `adapter: lora` or `adapter: qlora` in this version (adapter is "
            f"{cfg.get('adapter')!r}); set one, or {instead}."
        )
    if cfg.get("lora_model_dir"):
        raise ValueError(
            f"lora_model_dir: {cfg['lora_model_dir']} starts from a trained adapter, and sstoken.history: initial "
            f"is the model without adapter in this version; merge that adapter into the base model first, or "
            f"{instead}."
        )
    init = cfg.get("peft_init_lora_weights")
    if init not in PLAIN_LORA_INITS:
        raise ValueError(
            f"peft_init_lora_weights: {init} changes the base weights, so that sstoken.history: initial is not "
            f"the model without adapter; remove the key, or {instead}."
        )
