"""Models that are loaded beside one whose class Axolotl has patched for its LoRA kernels."""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any, TypeVar

from torch import nn

_KERNELS = "axolotl.monkeypatch.lora_kernels"
Model = TypeVar("Model", bound=nn.Module)


def with_plain_projections(model: Model, trained: nn.Module) -> Model:
    """Give a model without adapter the projections that a patched attention class asks its instances for.

    Under `lora_qkv_kernel` and `lora_o_kernel` Axolotl rewrites the forward pass of the *class*, which calls
    `self.apply_qkv` and `self.apply_o`, and puts these on the instances of the model in training alone.

    Args:
        model: of the same class, and of the same names of modules, where that is patched at all.
        trained: the model in training, without PEFT's wrapping.

    Returns:
        The model.
    """
    kernels: Any = sys.modules.get(_KERNELS)
    patched = dict(trained.named_modules())
    for name, module in model.named_modules() if kernels is not None else ():
        own = vars(patched.get(name, nn.Module()))
        if "apply_qkv" in own:
            has_values = getattr(module, "v_proj", None) is not None
            plain = kernels.original_apply_qkv if has_values else kernels.original_apply_qkv_optional_v
            module.apply_qkv = MethodType(plain, module)
        if "apply_o" in own:
            module.apply_o = MethodType(kernels.original_apply_o, module)
    return model
