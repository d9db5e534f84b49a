"""A plugin for tests: Axolotl on a CPU where it would insist on a GPU (several ranks, bfloat16)."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin


class OnCpu(BasePlugin):
    """Keeps model and trainer on the CPU."""

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        cfg.device_map = "cpu"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": True}
