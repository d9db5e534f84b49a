"""Losses of tokens under a linear output head, at the cost of the tokens that are kept.

Which tokens count is known only once all have a loss. So the forward pass gives every row's loss, without a graph over
the vocabulary; the backward pass runs on rows that a gradient reaches, and on no other: dropped tokens cost half of
what they cost in an ordinary loss, and no tensor over the vocabulary is as long as the batch in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Rows of logits that are worked on at a time: enough to keep a matrix product busy, few enough that their copies in
# float32 stay small.
_LEAST_ROWS, _ELEMENTS = 256, 2**24
# Logits up to this size wait for the backward pass. Of rows beyond, those that are kept are computed twice.
_HELD_BYTES = 2**29


def linear_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Negative log likelihood of each token in nats under `hidden @ weight.T + bias`, float32 [R], differentiable once.

    As `token_nll` of such logits, in value and gradient. Autocast applies as to a linear layer.

    Args:
        hidden: float [R, D].
        weight: float [V, D].
        bias: float [V], or None.
        target: int64 [R].
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        # Once, not once a chunk.
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    nll: Tensor = _LinearNLL.apply(hidden, weight, bias, target)
    return nll


class _LinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        held: list[Tensor] = []
        room = _HELD_BYTES if any(ctx.needs_input_grad) else 0
        for rows in _chunks(hidden, weight):
            logits = functional.linear(hidden[rows], weight, bias)
            nll[rows] = functional.cross_entropy(logits.float(), target[rows], reduction="none")
            room -= logits.nbytes
            if room >= 0:
                held.append(logits)
        ctx.save_for_backward(hidden, weight, bias, target, *held)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, *held = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for number, rows in enumerate(_chunks(hidden, weight)):
            kept = grad[rows].nonzero().squeeze(1)
            place = kept + rows.start
            logits = held[number][kept] if number < len(held) else functional.linear(hidden[place], weight, bias)
            # The gradient of the cross-entropy: probabilities, less one at the token itself.
            slope = torch.softmax(logits, -1, dtype=torch.float32)
            slope[torch.arange(len(kept), device=kept.device), target[place]] -= 1
            slope = slope.mul_(grad[place][:, None]).to(logits.dtype)
            if grad_hidden is not None:
                grad_hidden[place] = slope @ weight
            if grad_weight is not None:
                grad_weight.addmm_(slope.T, hidden[place])
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        return grad_hidden, grad_weight, grad_bias, None


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    rows = max(_LEAST_ROWS, _ELEMENTS // len(weight))
    return (slice(start, min(start + rows, len(hidden))) for start in range(0, len(hidden), rows))
