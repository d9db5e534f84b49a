"""Shows on a model, before it is trained on, that looking at it changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.modes import random_state_kept, random_states, trial_tokens, without_trace
from sstoken_plugin.engine.output_head import response_nll
from sstoken_plugin.engine.sharding import held_part
from sstoken_plugin.selection.samples import BatchLayout, mix

if TYPE_CHECKING:
    from sstoken_plugin.history.base import History


# Values of a tensor that are summed up at a time, see `_sum_of_bits`.
_ROW = 4096


def watching_changes(attention: PromptAttention, model: Any, batch: Mapping[str, Tensor], layout: BatchLayout) -> bool:
    """Tell whether a model computes something else while its attention is measured, in evaluation or as it trains.

    Args:
        attention: what measures.
        model: the unwrapped model. It is not changed.
        batch: see `BatchLayout.of`.
        layout: its layout, with response tokens.
    """

    def differs() -> bool:
        with random_state_kept():
            plain, dice = response_nll(model, batch, layout), random_states()
        with random_state_kept(), attention.measure(layout.prompt):
            watched, others = response_nll(model, batch, layout), random_states()
        if dice != others:
            # Later steps would draw other numbers.
            return True
        # A loss may be infinite or no number in either pass: such tokens rank last, and training goes on.
        finite = torch.isfinite(plain)
        if not torch.equal(torch.isfinite(watched), finite):
            return True
        # On GPUs the same pass may differ in the last digits from time to time.
        return not bool((watched - plain)[finite].norm() <= 1e-3 * plain[finite].norm())

    with without_trace(model):
        if differs():
            return True
    if not model.training:
        return False
    with torch.no_grad(), buffers_kept(model), warnings.catch_warnings():
        # Checkpointing has nothing to do without gradient, and says so.
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        return differs()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give every buffer the value that it had before the block."""
    # In the computer's memory: the weights of some quantised models are buffers.
    kept = [
        (module, name, buffer, buffer.to("cpu", copy=True))
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in kept:
            buffer.copy_(value)
            module._buffers[name] = buffer


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
        past_before = _state(past)
        with without_trace(past):
            tokens = trial_tokens(model)
            past(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        changed = _changed(past_before, _state(past))
    return sorted(changed | _changed(before, _state(model)))


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def _state(model: Any) -> dict[str, Any]:
    """Return what tells a change of each tensor and mode; of sharded tensors this rank's part is read."""
    modes = {f"{name}.training": module.training for name, module in model.named_modules()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return modes | {name: (tensor.requires_grad, tensor.shape, _sum_of_bits(tensor)) for name, tensor in tensors}


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
