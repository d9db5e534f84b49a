"""Put example YAMLs of Axolotl through its own validation with the plugin added, and without.

Nothing is mocked and nothing is downloaded. GPUs are claimed, because the examples are for machines that have some.
What Axolotl reads from a model's config.json is read from one that says nothing but the model's type, where the name of
the model tells.
"""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from sstoken_plugin.axolotl import compatibility
from sstoken_plugin.axolotl.refusals import REFUSALS
from sstoken_plugin.base.refusal import Refusal

GPUS = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 8, "n_node": 1, "compute_capability": "sm_90"}

# Training that is no supervised fine-tuning, by the keys that ask for it.
OTHER_TRAINING = (
    "rl", "reward_model", "process_reward_model", "orpo_alpha", "pretraining_dataset", "diffusion_lm", "diffusion",
    "diffusion_decision",
)  # fmt: skip

# Parts of a base model's name where the longest model type in it is not the model's: that of its text part, or none.
MODEL_TYPES = {
    "Llama-3.2-11B-Vision": "mllama",
    "Mistral-Small-3": "mistral3",
    "Mistral-Small-4": "mistral3",
    "Mistral-Medium-3.5": "mistral3",
    "Ministral-3": "mistral3",
    "Magistral-Small-2509": "mistral3",
    "Magistral-Small": "mistral",
    "Devstral-Small": "mistral",
    "Ministral-8B": "mistral",
    "gemma-3-1b": "gemma3_text",
    "gemma-3-270m": "gemma3_text",
    "cogito-v1-preview-qwen": "qwen2",
    "DeepCoder": "qwen2",
    "pythia": "gpt_neox",
    "Yi-34B": "llama",
    "xgen": "llama",
    "orpheus": "llama",
    "SmolLM2": "llama",
}

Outcome = Literal["accepted", "warned", "refused", "refused by Axolotl"]


@dataclass
class Verdict:
    """What becomes of one example.

    Attributes:
        name: its path below the folder of examples.
        supervised: whether it is supervised fine-tuning.
        outcome: what the plugin says to it; Axolotl's own refusals are those that it gives without the plugin too.
        sentence: why it was refused.
        refusal: the one of the plugin's list that holds.
        warnings: keys that the plugin warns of.
        multimodal: whether the model can see or hear; None where its type is not known.
    """

    name: str
    supervised: bool
    outcome: Outcome
    sentence: str = ""
    refusal: Refusal | None = None
    warnings: list[str] = field(default_factory=list)
    multimodal: bool | None = None


def judge_all(folder: Path) -> Iterator[Verdict]:
    """Yield the verdict on each YAML below a folder that trains a model.

    Args:
        folder: as `axolotl fetch examples` makes it.
    """
    for file in sorted(file for file in folder.rglob("*") if file.suffix in (".yaml", ".yml")):
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        # The others set up machines in a cloud.
        if isinstance(raw, dict) and "base_model" in raw:
            yield judge(file.relative_to(folder).as_posix(), raw)


def judge(name: str, raw: Mapping[str, Any]) -> Verdict:
    """Return the verdict on one YAML.

    Args:
        name: of the example.
        raw: its content.
    """
    supervised = not any(raw.get(key) for key in OTHER_TRAINING)
    try:
        plain = _validated(raw)
    except Exception as error:
        return Verdict(name, supervised, "refused by Axolotl", _sentence(error))
    try:
        _normalize(plain)
    except Exception:
        # The type of the model alone does not do.
        plain = None
    try:
        cfg = _validated({**raw, "plugins": [*(raw.get("plugins") or []), "sstoken"], "sstoken": {}})
        if plain is not None:
            _normalize(cfg)
        _last_check(cfg)
    except Exception as error:
        sentence = _sentence(error)
        return Verdict(name, supervised, "refused", sentence, _refusal(sentence))
    warnings = compatibility.untested(cfg)
    multimodal = bool(cfg.is_multimodal) if plain is not None and cfg.model_config_type else None
    return Verdict(name, supervised, "warned" if warnings else "accepted", warnings=warnings, multimodal=multimodal)


def model_type(base_model: str) -> str | None:
    """Return the type of a model as its config.json would name it, by transformers' own rule for one that does not.

    That rule takes the longest type that is part of the name; here signs do not count, and `MODEL_TYPES` corrects it.

    Args:
        base_model: repository of the model.
    """
    from transformers import CONFIG_MAPPING

    for part, kind in MODEL_TYPES.items():
        if part.lower() in base_model.lower():
            return kind
    plain = _plain(base_model.rpartition("/")[2])
    kinds = [kind for kind in CONFIG_MAPPING if len(_plain(kind)) > 2 and _plain(kind) in plain]
    return max(kinds, key=len, default=None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _validated(raw: Mapping[str, Any]) -> Any:
    import torch
    from axolotl.cli.config import prepare_plugins
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    # Both are of the process, and one example must not leave anything to the next.
    PluginManager.get_instance().plugins.clear()
    saved = dict(os.environ)
    try:
        cfg = DictDefault(copy.deepcopy(dict(raw)))
        prepare_plugins(cfg)
        version = torch.__version__.partition("+")[0]
        return validate_config(cfg, capabilities=dict(GPUS), env_capabilities={"torch_version": version})
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _normalize(cfg: Any) -> None:
    """Let Axolotl derive what it derives from a model's config.json, where the type of the model is known."""
    from axolotl.utils.config import normalize_config

    kind = model_type(cfg.base_model)
    if kind is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": kind}))
        asked = cfg.base_model_config
        cfg.base_model_config = folder
        normalize_config(cfg)
        cfg.base_model_config = asked


def _last_check(cfg: Any) -> None:
    """Ask what the plugin asks before data are loaded."""
    from axolotl.integrations.base import PluginManager

    from sstoken_plugin.axolotl.plugin import SSTokenPlugin

    for plugin in PluginManager.get_instance().plugins.values():
        if isinstance(plugin, SSTokenPlugin):
            plugin.load_datasets(cfg)


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return ": ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")])
    return str(error)


def _refusal(sentence: str) -> Refusal | None:
    fits = (each for each in REFUSALS if each.reason in sentence and sentence.startswith(each.key))
    return next(fits, None)
