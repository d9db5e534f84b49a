"""Shows on a model, before it is trained on, that running its history changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.engine.modes import trial_tokens, without_trace
from sstoken_plugin.engine.sharding import held_part
from sstoken_plugin.history.base import History
from sstoken_plugin.selection.samples import mix

# Values of a tensor that are summed up at a time, see `_sum_of_bits`.
_ROW = 4096


def traces_of(history: History, model: Any) -> list[str]:
    """Run a history once over a few tokens, and name what is not as it was after it, of the model and of the history.

    Random generators are not looked at: `without_trace` gives them their state back.

    Args:
        history: the history.
        model: the unwrapped model in training.

    Returns:
        Names of parameters, buffers and modules (their mode).
    """
    before = _state(model)
    with history.active(model) as past:
        # A history without weights of its own is the model, which is looked at once more below.
        past_before = _state(past) if history.memory else None
        with without_trace(past):
            tokens = trial_tokens(model)
            past(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        changed = set() if past_before is None else _changed(past_before, _state(past))
    return sorted(changed | _changed(before, _state(model)))


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def _state(model: Any) -> dict[str, Any]:
    """Return what tells a change of each tensor and mode; of sharded tensors this rank's part is read."""
    modes = {f"{name}.training": module.training for name, module in model.named_modules()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    # Of the held part also the shape: that of a whole tensor under ZeRO-3 says whether a pass has left it gathered.
    held = {name: (tensor.requires_grad, held_part(tensor).shape, _sum_of_bits(tensor)) for name, tensor in tensors}
    return modes | held


def _sum_of_bits(tensor: Tensor) -> int:
    held: Any = held_part(tensor).detach()
    if hasattr(held, "__tensor_flatten__"):
        # A quantised tensor that is made of others.
        return sum(_sum_of_bits(getattr(held, name)) for name in held.__tensor_flatten__()[0])
    if held.is_meta or not held.numel():
        return 0
    # Whatever the dtype, and exact: a sum of the values would lose small changes of large tensors.
    # A tensor of one entry may have any stride, and view wants 1.
    bits = held.contiguous().as_strided((held.numel(),), (1,)).view(torch.uint8)
    wide = len(bits) // (4 * _ROW) * _ROW
    rows = bits[: 4 * wide].view(torch.int32).view(-1, _ROW)
    # By row and by column, because values that changed places have the same sum.
    parts = (rows.sum(0, dtype=torch.int64), rows.sum(1, dtype=torch.int64), bits[4 * wide :].long())
    return sum(int((mix(torch.arange(len(part), device=part.device)) * part).sum()) for part in parts)
