"""Which adapters stand over other base weights than those on disk, by PEFT's settings."""

from __future__ import annotations

from typing import Any

# Values of init_lora_weights that leave the base weights as they are.
PLAIN_INITS = (None, True, False, "gaussian")


def base_change(adapter: Any) -> str:
    """Return the setting of an adapter that changed the base weights when it was made, or "".

    Args:
        adapter: a PeftConfig.
    """
    init, layers = getattr(adapter, "init_lora_weights", None), getattr(adapter, "layer_replication", None)
    if init not in PLAIN_INITS:
        return f"init_lora_weights: {init}"
    return f"layer_replication: {layers}" if layers else ""
