"""When a YAML is refused beside token selection; why is in refusals.py.

Works on plain mappings, so that the same rules serve the raw YAML, the validated one and the tests.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.axolotl import refusals, releases
from sstoken_plugin.base.files import expand
from sstoken_plugin.base.refusal import asked_for
from sstoken_plugin.base.visible_text import told_on_one_line
from sstoken_plugin.history import named
from sstoken_plugin.history.inits import PLAIN_INITS
from sstoken_plugin.selection.config import SSTokenConfig, nearest

NAMES = ("sstoken", "sstoken_plugin.SSTokenPlugin", "sstoken_plugin.plugin.SSTokenPlugin")


@told_on_one_line()
def check(cfg: Mapping[str, Any]) -> SSTokenConfig:
    """Return the parsed `sstoken:` block of a whole YAML, or refuse the YAML.

    Args:
        cfg: the whole configuration, raw or validated.

    Raises:
        ValueError: one sentence that names the key and the fix.
    """
    _refuse_misplaced_keys(cfg)
    config = SSTokenConfig.from_block(cfg.get("sstoken"))
    for refusal in refusals.ALWAYS:
        value = cfg.get(refusal.key)
        if value:
            refusal.refuse(None if isinstance(value, (Mapping, list)) else value)
    for refusal in refusals.ABOVE_ONE:
        value = _nested(cfg, refusal.key)
        if _number(value) > 1:
            refusal.refuse(value)
    adapter = cfg.get("adapter")
    if isinstance(adapter, str) and adapter and adapter not in refusals.ADAPTERS:
        refusals.ADAPTER.refuse(adapter)
    if releases.asks_for_fsdp1(cfg):
        refusals.FSDP1.refuse()
    if cfg.get("sample_packing") and not releases.packing_separates_samples(cfg):
        refusals.PACKING.refuse(cfg.get("attn_implementation") or "null")
    if config.needs_history:
        _refuse_unfit_history(cfg, config)
    if config.cache_folder is not None:
        refuse_unfit_cache(cfg, config.cache_folder)
    return config


def fused_losses(cfg: Mapping[str, Any]) -> list[str]:
    """Keys of the YAML that fuse the output head with the loss, so that no token has a loss of its own."""
    keys = ("liger_fused_linear_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy")
    return [key for key in keys if cfg.get(key)]


def untested(cfg: Mapping[str, Any]) -> list[str]:
    """Keys of the YAML that ask for a way of training which nobody has tried with the selection."""
    asked = asked_for(refusals.UNTESTED, cfg.get)
    # On by default, and without effect elsewhere: a warning of it would be in every run.
    if not (cfg.get("sample_packing") and "flash" in str(cfg.get("attn_implementation"))):
        asked = [key for key in asked if key != "fa_varlen_kwargs_in_collator"]
    return asked


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
    # These two are keys of Axolotl's as well.
    for key in SSTokenConfig.model_fields.keys() - {"seed", "warmup_ratio"}:
        if cfg.get(key) is not None:
            raise ValueError(
                f"{key} is no key of Axolotl's; settings of the selection go into the `sstoken:` block: write "
                f"`sstoken:` and, indented below it, `{key}: {cfg[key]}`."
            )
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


def refuse_unfit_cache(cfg: Mapping[str, Any], path: str) -> None:
    """Refuse a YAML whose losses cannot be kept in a folder.

    Args:
        cfg: the whole configuration.
        path: the folder.

    Raises:
        ValueError: one sentence that names the key and the fix.
    """
    for refusal in refusals.WITH_CACHE:
        if cfg.get(refusal.key):
            refusal.refuse()
    if _zero_stage(cfg) == 3:
        refusals.ZERO_3["history_cache"].refuse(path)
    named.refuse_unfit_cache(path)


def _refuse_unfit_history(cfg: Mapping[str, Any], config: SSTokenConfig) -> None:
    if config.history_is_path:
        _refuse_unfit_folder(cfg, config)
    if cfg.get("lisa_n_layers"):
        refusals.LISA.refuse()
    if config.history_is_path and _zero_stage(cfg) == 3:
        refusals.ZERO_3["history"].refuse(config.history)


def _refuse_unfit_folder(cfg: Mapping[str, Any], config: SSTokenConfig) -> None:
    named.refuse_unfit_history(config.history)
    folder = expand(config.history)
    if cfg.get("adapter") and (folder / named.ADAPTER_FILE).exists():
        for refusal in refusals.BASE_CHANGING:
            value = _nested(cfg, refusal.key)
            if value not in PLAIN_INITS if refusal.key == "peft_init_lora_weights" else value:
                refusal.refuse(value)


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
