"""A plugin of Axolotl that trains in bfloat16 on a CPU too, where a step takes half the time where it can.

Named in `plugins:`, beside `bf16: false`: the weights stay float32, and what is computed is cast, as transformers does
with `bf16` on a GPU. On a CPU transformers asks for `use_cpu` with it, which is no key of Axolotl.
"""

from __future__ import annotations

from typing import Any

import torch
from axolotl.integrations.base import BasePlugin

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
