"""A plugin of Axolotl that trains in bfloat16 on a CPU too, where a step takes half the time where it can.

Named in `plugins:`, beside `bf16: false`: the weights stay float32, and what is computed is cast, as transformers does
with `bf16` on a GPU. On a CPU transformers asks for `use_cpu` with it, which is no key of Axolotl.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from torch import nn

from evidence import bfloat16


class AutocastPlugin(BasePlugin):
    """`plugins: [evidence.autocast.AutocastPlugin]`."""

    def pre_model_load(self, cfg: Any) -> None:
        """Spare a CPU without instructions for bfloat16 the slow loops of PyTorch."""
        if not torch.cuda.is_available() and not bfloat16.is_fast():
            bfloat16.by_float32()

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Return the arguments of the trainer that no key of Axolotl sets."""
        return {"bf16": True, "use_cpu": not torch.cuda.is_available()}

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Spare autocast the casts of frozen weights, which it repeats in every pass.

        Not that of the output head, which the plugin runs in a way of its own where nothing else has a hand in it.
        """
        head = model.get_output_embeddings()
        for module in model.modules():
            if type(module) is nn.Linear and module is not head and not module.weight.requires_grad:
                vars(module)["forward"] = _of_one_cast(module)


def _of_one_cast(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    @cache
    def weight(dtype: torch.dtype) -> torch.Tensor:
        # Made in a pass that measures, it is to serve one that trains.
        with torch.inference_mode(False):
            return linear.weight.detach().to(dtype)

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        device = inputs.device.type
        lowered = torch.is_autocast_enabled(device)
        used = weight(torch.get_autocast_dtype(device)) if lowered else linear.weight
        return nn.functional.linear(inputs, used, linear.bias)

    return forward
