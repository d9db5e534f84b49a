"""A plugin for tests: Axolotl on a CPU where it would insist on a GPU (several ranks, bfloat16)."""

from __future__ import annotations

from typing import Any

import torch
from axolotl.integrations.base import BasePlugin

# A torch built for GPUs, without one, stumbles over Axolotl's question whether GPUs reach each other.
torch.cuda.can_device_access_peer = lambda *args: True


class OnCpu(BasePlugin):
    """Keeps model and trainer on the CPU."""

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        cfg.device_map = "cpu"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": True}
