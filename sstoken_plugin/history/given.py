"""Loads the history that a user names: `sstoken.history: PATH`, an adapter folder or a full checkpoint."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.engine.modes import under_adapter
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.sharding import is_sharded
from sstoken_plugin.history.adapter import has_effect, holds_weights, trained_outside_adapter
from sstoken_plugin.history.frozen import FrozenModel, without_adapter
from sstoken_plugin.history.inits import base_change
from sstoken_plugin.history.named import ADAPTER_FILE, MODEL_FILE

LOG = logger(__name__)


def load_given(folder: Path, run: Run, model: Any, tokenizer: Any, *, is_trained: bool = False) -> FrozenModel:
    """Load a history from a folder.

    An adapter goes over the run's own base weights, which are shared with the model in training under LoRA
    and loaded a second time in full fine-tuning. A full checkpoint is loaded as the run's base model is:
    in its precision and quantisation.

    Args:
        folder: the adapter folder or the full checkpoint.
        run: the facts of the run.
        model: the unwrapped model in training. It is not changed.
        tokenizer: its tokenizer.
        is_trained: whether the model was trained already.

    Raises:
        ValueError: the folder does not fit the run; the sentence names `sstoken.history`.
    """
    if (folder / ADAPTER_FILE).exists():
        return _adapter(folder, run, model, tokenizer, is_trained)
    refuse_other_vocabulary(folder, tokenizer)
    with _loading(folder):
        history = FrozenModel(_load_folder(folder, run, model), f"the model in {folder}")
    _refuse_small_vocabulary(folder, _rows_of(history.model), tokenizer)
    if history.is_movable:
        # Quantised weights may be stored as floats that they are not.
        _refuse_not_finite(folder, history.model.parameters())
    return history


def refuse_other_vocabulary(folder: Path, tokenizer: Any) -> None:
    """Refuse a full checkpoint of which small files say that its tokens are not those of the run.

    Args:
        folder: the full checkpoint; an adapter has no tokens of its own.
        tokenizer: that of the run.

    Raises:
        ValueError: see `load_given`.
    """
    if (folder / ADAPTER_FILE).exists():
        return
    _refuse_other_tokenizer(folder, tokenizer)
    with _loading(folder):
        settings = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        rows = {**settings, **(settings.get("text_config") or {})}.get("vocab_size")
    if isinstance(rows, int):
        _refuse_small_vocabulary(folder, rows, tokenizer)


def _refuse_surplus(folder: Path, history: PeftModel) -> None:
    """Refuse weights that the adapter's settings leave out: PEFT would drop them without a word."""
    if not (folder / SAFETENSORS_WEIGHTS_NAME).exists():
        return
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as opened:
        found = {name for name in opened.keys() if "lora_" in name}  # noqa: SIM118
    if surplus := sorted(found - get_peft_model_state_dict(history, save_embedding_layers=False).keys()):
        raise ValueError(f"{ADAPTER_FILE} leaves out {len(surplus)} tensors that its file has ({surplus[0]}, ...)")


def _refuse_not_finite(folder: Path, weights: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in weights if weight.is_floating_point()):
        raise ValueError(f"sstoken.history: {folder} has weights that are not finite; name one that was saved whole.")


def _rows_of(model: Any) -> int:
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def _refuse_small_vocabulary(source: Any, rows: int, tokenizer: Any) -> None:
    if rows < len(tokenizer):
        raise ValueError(
            f"sstoken.history: {source} knows {rows} tokens and the tokenizer of this run has {len(tokenizer)}; "
            "name a checkpoint of a model with the same tokenizer."
        )


def _adapter(folder: Path, run: Run, model: Any, tokenizer: Any, is_trained: bool) -> FrozenModel:
    with _loading(folder):
        adapter = PeftConfig.from_pretrained(str(folder))
        if not adapter.peft_type:
            raise ValueError(f"{ADAPTER_FILE} names no peft_type")
    if key := base_change(adapter):
        raise ValueError(
            f"sstoken.history: {folder} was trained with {key}, over base weights that it changed; convert it to a "
            "plain LoRA adapter (PEFT's path_initial_model_for_weight_conversion), or name a full checkpoint."
        )
    if str(adapter.base_model_name_or_path) != run.base_model:
        LOG.warning(
            "ssToken: sstoken.history: %s was trained over %s; it is used over %s.",
            folder, adapter.base_model_name_or_path, run.base_model,
        )  # fmt: skip
    # Modules that share tensors can't be sharded twice.
    shares = isinstance(model, PeftModel) and not is_sharded(model)
    if shares and (outside := trained_outside_adapter(model)):
        raise ValueError(
            f"sstoken.history: {folder} needs base weights that stay as they are, but {len(outside)} tensors outside "
            f"the adapter train too ({outside[0]}, ...); freeze them, or name a full checkpoint."
        )
    for own in model.peft_config.values() if shares else ():
        if key := base_change(own):
            raise ValueError(
                f"sstoken.history: {folder} goes over the base weights of this run, which its own adapter has changed "
                f"({key}); make a plain one, or set history: initial."
            )
    if shares and not is_trained and run.starts_from is None and has_effect(model):
        raise ValueError(
            f"sstoken.history: {folder} goes over the base weights of this run, and making the run's own adapter has "
            f"changed them ({run.names.adapter_init}, say); make a plain one, or set history: initial."
        )
    base = without_adapter(model) if shares else _load(run, model)
    _refuse_small_vocabulary(run.base_model, _rows_of(base), tokenizer)
    with _loading(folder):
        if not holds_weights(folder):
            raise ValueError(f"it has no {SAFETENSORS_WEIGHTS_NAME}")
        history = PeftModel.from_pretrained(base, folder)
        _refuse_surplus(folder, history)
    _refuse_not_finite(folder, (weight for name, weight in history.named_parameters() if "lora_" in name))
    return FrozenModel(history, f"the adapter in {folder}", shared_with=model if shares else None)


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turn whatever a folder does to those who read it into one sentence.

    Raises:
        ValueError: see there.
    """
    try:
        with warnings.catch_warnings():
            # PEFT would go on with weights as they were drawn.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            yield
    except UnpicklingError:
        # torch's own words advise to run what the file holds.
        reason = "its weights are a pickle that holds more than tensors; save them as safetensors"
    except UserWarning:
        reason = "weights are missing from its file; name a whole adapter folder"
    except Exception as error:
        reason = f"{in_short(error)}; name an adapter folder or a checkpoint that is whole"
    else:
        return
    raise ValueError(f"sstoken.history: {folder} cannot be loaded: {reason}.")


def _load(run: Run, model: Any) -> nn.Module:
    """Load the run's base model a second time."""
    own = under_adapter(model)
    settings = _as_in_training(run, model)
    if "quantization_config" not in settings:
        # As the run has changed it, by overrides_of_model_config say, but for tokens that it has added.
        config = copy.deepcopy(own.config)
        on_disk = type(own.config).from_pretrained(run.base_model, revision=run.revision)
        config.get_text_config().vocab_size = on_disk.get_text_config().vocab_size
        settings["config"] = config
    loaded: nn.Module = type(own).from_pretrained(run.base_model, revision=run.revision, **settings)
    return run.second_model(loaded, own)


def _load_folder(folder: Path, run: Run, model: Any) -> nn.Module:
    """Load a full checkpoint. Code that it brings is not run: trust_remote_code is about the base model."""
    own = under_adapter(model)
    found = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    if found.get("model_type") == own.config.model_type:
        config = type(own.config).from_pretrained(folder)
        kind: Any = type(own)
    elif "auto_map" in found:
        raise ValueError("it brings code of its own, which is not run for a history")
    else:
        config, kind = AutoConfig.from_pretrained(folder, trust_remote_code=False), AutoModelForCausalLM
    settings = _as_in_training(run, model)
    loaded, info = kind.from_pretrained(folder, config=config, output_loading_info=True, **settings)
    faults = {"missing_keys": "are missing"}
    if kind is type(own):
        # Another class may leave out what only the whole has, such as an image tower.
        faults["unexpected_keys"] = "have no place in its model"
    for fault, words in faults.items():
        if names := sorted(info[fault]):
            raise ValueError(f"{len(names)} of its tensors {words} ({names[0]}, ...)")
    return run.second_model(loaded, own)


def _as_in_training(run: Run, model: Any) -> dict[str, Any]:
    quantised = getattr(model.config, "quantization_config", None)
    return {
        "dtype": run.dtype or model.get_input_embeddings().weight.dtype,
        "attn_implementation": model.config._attn_implementation,
        # Quantised weights are made on the device where they stay.
        **({"quantization_config": quantised, "device_map": {"": model.device}} if quantised else {}),
    }


def _refuse_other_tokenizer(folder: Path, tokenizer: Any) -> None:
    file = folder / "tokenizer_config.json"
    if not file.exists():
        return
    with _loading(folder):
        brings_code = "auto_map" in json.loads(file.read_text(encoding="utf-8"))
        kind = type(tokenizer) if brings_code else AutoTokenizer
        theirs = kind.from_pretrained(folder, **({} if brings_code else {"trust_remote_code": False})).get_vocab()
    ours = tokenizer.get_vocab()
    other = [token for token, place in ours.items() if theirs.get(token, place) != place]
    if other or len(ours.keys() & theirs.keys()) < min(len(ours), len(theirs)):
        raise ValueError(
            f"sstoken.history: {folder} has another tokenizer than this run"
            f"{f' ({other[0]!r} has another number)' if other else ''}; name a checkpoint of a model with the same one."
        )
