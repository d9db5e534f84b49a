"""What the losses of an unchanging history depend on beside the sample, as one short hash."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.engine.sharding import plain_name, whole

# Parameters of an adapter by PEFT's naming; whatever else trains is still there with the adapter off.
ADAPTER_MARKS = ("lora_", "modules_to_save.", "trainable_tokens_")
# Settings of a model that do not change its losses.
_IRRELEVANT = {
    "architectures", "attn_implementation", "base_model_name_or_path", "bos_token_id", "dtype",
    "eos_token_id", "inference_mode", "lora_dropout", "name_or_path", "pad_token_id", "revision", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip


def fingerprint(model: Any, *, adapter_off: bool = False) -> bytes:
    """Hash a model: every weight, quantised or not, with its dtype, the architecture and the adapter.

    An autocast in force counts too. Names are those of the plain model, so that full fine-tuning and LoRA on the
    same weights share losses.

    Args:
        model: the unwrapped model.
        adapter_off: leave out the adapter.

    Returns:
        16 bytes.
    """
    kind = model.device.type
    tensors = sorted(
        (plain_name(name), tensor)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and not (adapter_off and any(mark in name for mark in ADAPTER_MARKS))
    )
    adapters = {} if adapter_off else getattr(model, "peft_config", {})
    settings = {
        "config": _relevant(model.config.to_dict()),
        "adapters": [_relevant(adapter.to_dict()) for adapter in adapters.values()],
        "precision": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "",
    }
    found = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=_as_text).encode(), digest_size=16)
    for line in digests((name, whole(tensor)) for name, tensor in tensors):
        found.update(line)
    return found.digest()


def digests(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes]:
    """Yield a hash of each tensor's name, dtype, shape and bits, a few at a time, as they come."""
    workers = min(8, os.cpu_count() or 1)
    rest = iter(tensors)
    # Hashing lets other threads run.
    with ThreadPoolExecutor(max_workers=workers) as pool:
        while some := list(itertools.islice(rest, workers)):
            yield from pool.map(_digest, *zip(*some, strict=True))


def _digest(name: str, tensor: Tensor) -> bytes:
    found = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.lstrip("_") not in _IRRELEVANT}


def _as_text(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
