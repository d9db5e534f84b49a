"""Shows on a model, before it is trained on, that looking at it changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.modes import random_state_kept, random_states, without_trace
from sstoken_plugin.engine.output_head import ProvenWays, response_nll
from sstoken_plugin.selection.samples import BatchLayout


def watching_changes(
    attention: PromptAttention,
    model: Any,
    batch: Mapping[str, Tensor],
    layout: BatchLayout,
    ways: ProvenWays | None = None,
) -> bool:
    """Tell whether a model computes something else while its attention is measured, in evaluation or as it trains.

    Args:
        attention: what measures.
        model: the unwrapped model. It is not changed.
        batch: see `BatchLayout.of`.
        layout: its layout, with response tokens.
        ways: see `response_nll`.
    """

    def differs() -> bool:
        with random_state_kept():
            plain, states = response_nll(model, batch, layout, ways), random_states()
        with random_state_kept(), attention.measure(layout.prompt):
            watched, others = response_nll(model, batch, layout, ways), random_states()
        if states != others:
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
