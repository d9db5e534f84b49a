"""`history: initial` under LoRA: the same weights with the adapter switched off, at no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors import SafetensorError
from torch import nn

from sstoken_plugin.engine.modes import trial_tokens, without_trace
from sstoken_plugin.history.base import History
from sstoken_plugin.history.fingerprint import ADAPTER_MARKS, fingerprint


class AdapterOff(History):
    """The model without its adapter, where that is the model before training."""

    description = "the model before training (adapter switched off)"

    @staticmethod
    def serves(model: nn.Module, *, adapter_is_trained: bool = False) -> bool:
        """Tell whether the model without its adapter is the model before training.

        Args:
            model: the unwrapped model. It is not changed.
            adapter_is_trained: whether the adapter has an effect because it was trained from none.
        """
        if not isinstance(model, PeftModel) or trained_outside_adapter(model):
            return False
        return adapter_is_trained or not has_effect(model)

    @contextmanager
    def active(self, model: Any) -> Iterator[Any]:
        """Switch the adapter of the PeftModel off inside the block."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        # The tuner's own switch, because PeftModel.disable_adapter() walks the model for a status report.
        model.base_model.disable_adapter_layers()
        try:
            yield model
        finally:
            model.base_model.enable_adapter_layers()
            # Switching marks every tensor of the adapter as trained, those a user froze included.
            for parameter in trained:
                parameter.requires_grad_(True)
            for parameter in frozen:
                parameter.requires_grad_(False)

    def depends_on(self, name: str) -> bool:
        """Tell whether a weight is there with the adapter off."""
        return is_of_base(name)

    def fingerprint(self, model: Any) -> bytes:
        """Hash the model without its adapter."""
        return fingerprint(model, adapter_off=True)


def has_effect(model: PeftModel) -> bool:
    """Tell whether a model's adapter changes what it computes, as one that was trained does.

    One that was not trained does so where its initialisation has changed base weights, and makes up for it.
    """
    tokens = trial_tokens(model)
    with without_trace(model):
        now = model(input_ids=tokens, use_cache=False).logits
        with AdapterOff().active(model):
            before = model(input_ids=tokens, use_cache=False).logits
    # The same weights may give logits that differ in the last digits.
    last_digits = 3 * max(torch.finfo(now.dtype).eps, 1e-5)
    change = (now - before).nan_to_num().abs().max()
    return bool(change > last_digits * before.nan_to_num(posinf=0, neginf=0).abs().max())


def has_adapter_of(model: PeftModel, folder: Path) -> bool:
    """Tell whether a model's adapter has the very weights that a checkpoint folder holds of it."""
    name = model.active_adapter
    # PEFT's way of saving more than one, or one of another name.
    folder = folder if name == "default" else folder / name
    # Without this PEFT would ask a hub.
    if not holds_weights(folder):
        return False
    try:
        there = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, SafetensorError, UnpicklingError):
        return False
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return own.keys() <= there.keys() and all(
        tensor.shape == there[key].shape and torch.equal(tensor.detach().cpu(), there[key].to(tensor.dtype))
        for key, tensor in own.items()
    )


def holds_weights(folder: Path) -> bool:
    """Tell whether a folder has a file of an adapter's weights."""
    return any((folder / name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME))


def is_of_base(name: str) -> bool:
    """Tell whether a parameter is still there with the adapter off, by its name."""
    return not any(mark in name for mark in ADAPTER_MARKS)


def trained_outside_adapter(model: nn.Module) -> list[str]:
    """Return the names of tensors that train and are still there with the adapter off."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and is_of_base(name)]
