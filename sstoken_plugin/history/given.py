"""Loads the history that a user names: `sstoken.history: PATH`, an adapter folder or a full checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sstoken_plugin.history.adapter import has_effect, trained_outside_adapter
from sstoken_plugin.history.frozen import FrozenModel, without_adapter
from sstoken_plugin.modes import under_adapter
from sstoken_plugin.refusals import PLAIN_INITS
from sstoken_plugin.sharding import is_sharded

LOG = logging.getLogger(__name__)

ADAPTER_FILE, MODEL_FILE = "adapter_config.json", "config.json"


def load_given(
    folder: Path, cfg: Mapping[str, Any], model: Any, tokenizer: Any, *, is_trained: bool = False
) -> FrozenModel:
    """Load a history from a folder.

    An adapter goes over the run's own base weights, which are shared with the model in training under LoRA
    and loaded a second time in full fine-tuning. A full checkpoint is loaded as the run's base model is:
    in its precision and quantisation.

    Args:
        folder: the adapter folder or the full checkpoint.
        cfg: the whole YAML.
        model: the unwrapped model in training. It is not changed.
        tokenizer: its tokenizer.
        is_trained: whether the model was trained already.

    Raises:
        ValueError: the folder does not fit the run; the sentence names `sstoken.history`.
    """
    if (folder / ADAPTER_FILE).exists():
        return _adapter(folder, cfg, model, is_trained)
    _refuse_other_tokenizer(folder, tokenizer)
    with _loading(folder):
        history = FrozenModel(_load(folder, cfg, model), f"the model in {folder}")
    rows = history.model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ValueError(
            f"sstoken.history: {folder} knows {rows} tokens and the tokenizer of this run has {len(tokenizer)}; "
            "name a checkpoint of a model with the same tokenizer."
        )
    return history


def _adapter(folder: Path, cfg: Mapping[str, Any], model: Any, is_trained: bool) -> FrozenModel:
    with _loading(folder):
        adapter = PeftConfig.from_pretrained(str(folder))
    init = getattr(adapter, "init_lora_weights", None)
    if init not in PLAIN_INITS:
        raise ValueError(
            f"sstoken.history: {folder} was trained with init_lora_weights: {init}, over base weights that it changed; "
            "convert it to a plain LoRA adapter (PEFT's path_initial_model_for_weight_conversion)."
        )
    if str(adapter.base_model_name_or_path) != str(cfg.get("base_model")):
        LOG.warning(
            "ssToken: sstoken.history: %s was trained over %s; it is used over %s.",
            folder, adapter.base_model_name_or_path, cfg.get("base_model"),
        )  # fmt: skip
    # Modules that share tensors can't be sharded twice.
    shares = isinstance(model, PeftModel) and not is_sharded(model)
    if shares and (outside := trained_outside_adapter(model)):
        raise ValueError(
            f"sstoken.history: {folder} needs base weights that stay as they are, but {len(outside)} tensors outside "
            f"the adapter train too ({outside[0]}, ...); freeze them, or name a full checkpoint."
        )
    if shares and not is_trained and not cfg.get("lora_model_dir") and has_effect(model):
        raise ValueError(
            f"sstoken.history: {folder} goes over the base weights of this run, and making the run's own adapter has "
            "changed them (peft_init_lora_weights, say); make a plain one, or set history: initial."
        )
    base = without_adapter(model) if shares else _load(cfg["base_model"], cfg, model, cfg.get("revision_of_model"))
    with _loading(folder):
        history = PeftModel.from_pretrained(base, folder)
    return FrozenModel(history, f"the adapter in {folder}", shared_with=model if shares else None)


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"sstoken.history: {folder} cannot be loaded: {error}") from error


def _load(source: Any, cfg: Mapping[str, Any], model: Any, revision: str | None = None) -> nn.Module:
    trusts = bool(cfg.get("trust_remote_code"))
    own = under_adapter(model)
    source_config = AutoConfig.from_pretrained(source, trust_remote_code=trusts, revision=revision)
    # A model that can also see is none for AutoModelForCausalLM.
    same = source_config.model_type == own.config.model_type
    quantised = getattr(model.config, "quantization_config", None)
    loaded: Any = (type(own) if same else AutoModelForCausalLM).from_pretrained(
        source,
        revision=revision,
        dtype=cfg.get("torch_dtype") or model.get_input_embeddings().weight.dtype,
        attn_implementation=model.config._attn_implementation,
        trust_remote_code=trusts,
        # Quantised weights are made on the device where they stay.
        **({"quantization_config": quantised, "device_map": {"": model.device}} if quantised else {}),
    )
    return loaded


def _refuse_other_tokenizer(folder: Path, tokenizer: Any) -> None:
    if not (folder / "tokenizer_config.json").exists():
        return
    with _loading(folder):
        theirs = AutoTokenizer.from_pretrained(folder).get_vocab()
    ours = tokenizer.get_vocab()
    other = [token for token, place in ours.items() if theirs.get(token, place) != place]
    if other or len(ours.keys() & theirs.keys()) < min(len(ours), len(theirs)):
        raise ValueError(
            f"sstoken.history: {folder} has another tokenizer than this run"
            f"{f' ({other[0]!r} has another number)' if other else ''}; name a checkpoint of a model with the same one."
        )
