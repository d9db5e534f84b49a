"""Losses of tokens under a linear output head, at the cost of response tokens and in the memory of a few of them.

Which tokens are trained on is known only once all have a loss. Under a frozen head the rows' gradients are computed
with their losses, and those of dropped tokens are thrown away: no row is computed twice and no logits are kept. A
trained head's own gradient is a sum over kept tokens, so that it must wait for the backward pass, which runs on those.

`torch.nn.functional.linear_cross_entropy` saves the memory too, but runs the backward pass on every row, with the
logits computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# (hidden [R, D], weight [V, D], bias [V] or None, target [R]) -> losses, float32 [R].
RowLosses = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]

# Rows of logits that are worked on at a time: enough to keep a matrix product busy, few enough that their copies in
# float32 stay small.
LEAST_ROWS, ELEMENTS = 256, 2**23
# Under a trained head, logits up to this size wait for the backward pass. Kept rows beyond are computed twice.
HELD_BYTES = 2**29


def linear_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Negative log likelihood of each token in nats under `hidden @ weight.T + bias`, float32 [R], differentiable once.

    As `token_nll` of such logits, in value and gradient. Autocast applies as to a linear layer.

    Args:
        hidden: float [R, D].
        weight: float [V, D].
        bias: float [V], or None.
        target: int64 [R].
    """
    dtype = compute_dtype(hidden)
    # Once, not once a chunk.
    hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    function: Any = _TrainedHead if is_trained(weight, bias) else _FrozenHead
    nll: Tensor = function.apply(hidden, weight, bias, target)
    return nll


def rows_at_a_time(vocabulary: int) -> int:
    """Return how many rows of logits are worked on at a time, for a vocabulary of this size."""
    return max(LEAST_ROWS, ELEMENTS // vocabulary)


def is_trained(weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether a head's own weights need a gradient."""
    return weight.requires_grad or (bias is not None and bias.requires_grad)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer would compute now."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def row_gradients(losses: RowLosses) -> RowLosses:
    """Let a kernel of per-token losses that computes all rows' gradients serve any of the rows, under a frozen head.

    Kernels such as liger's scale every row's gradient by one number, and can't drop rows afterwards.
    """

    def frozen(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        if not (torch.is_grad_enabled() and hidden.requires_grad):
            return losses(hidden, weight, bias, target)
        rows = hidden.detach().requires_grad_()
        nll = losses(rows, weight, bias, target)
        (gradient,) = torch.autograd.grad(nll.sum(), rows)
        scaled: Tensor = _KnownGradient.apply(hidden, gradient, nll.detach())
        return scaled

    return frozen


class _KnownGradient(torch.autograd.Function):
    """Gives losses [R] whose gradient towards each row of hidden states is known already, [R, D]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, gradient: Tensor, nll: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _scaled(ctx.saved_tensors[0], grad), None, None


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        scratch = _Scratch(len(hidden), weight, bias)
        for rows in _chunks(len(hidden), weight):
            log_p = scratch.log_p(scratch.logits(hidden[rows]))
            nll[rows] = _nll(log_p, target[rows])
            if gradient is not None:
                gradient[rows] = _slope(log_p, target[rows]).to(hidden.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _scaled(ctx.saved_tensors[0], grad), None, None, None


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        held: list[Tensor] = []
        room = HELD_BYTES
        scratch = _Scratch(len(hidden), weight, bias)
        for rows in _chunks(len(hidden), weight):
            logits = functional.linear(hidden[rows], weight, bias)
            nll[rows] = _nll(scratch.log_p(logits), target[rows])
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
        scratch = _Scratch(len(hidden), weight, bias)
        for number, rows in enumerate(_chunks(len(hidden), weight)):
            kept = grad[rows].nonzero().squeeze(1)
            place = kept + rows.start
            logits = held[number][kept] if number < len(held) else scratch.logits(hidden[place])
            slope = _slope(scratch.log_p(logits), target[place]).mul_(grad[place][:, None]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[place] = slope @ weight
            if grad_weight is not None:
                grad_weight.addmm_(slope.T, hidden[place])
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        return grad_hidden, grad_weight, grad_bias, None


class _Scratch:
    """Memory for the logits of one chunk and their log-softmax, which the next chunk uses again.

    On a CPU, memory that is new costs more than the softmax that is written to it.
    """

    def __init__(self, count: int, weight: Tensor, bias: Tensor | None):
        self._size = (min(count, rows_at_a_time(len(weight))), len(weight))
        self._weight, self._bias = weight, bias

    @cached_property
    def _logits(self) -> Tensor:
        return self._weight.new_empty(self._size)

    @cached_property
    def _log_p(self) -> Tensor:
        return self._weight.new_empty(self._size, dtype=torch.float32)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of rows, [n, V], until the next call."""
        out, weight = self._logits[: len(hidden)], self._weight.T
        if self._bias is None:
            return torch.mm(hidden, weight, out=out)
        return torch.addmm(self._bias, hidden, weight, out=out)

    def log_p(self, logits: Tensor) -> Tensor:
        """Return log probabilities, float32 [n, V], until the next call."""
        return torch.log_softmax(logits, -1, dtype=torch.float32, out=self._log_p[: len(logits)])


def _nll(log_p: Tensor, target: Tensor) -> Tensor:
    return -log_p.gather(1, target[:, None]).squeeze(1)


def _slope(log_p: Tensor, target: Tensor) -> Tensor:
    """Turn log probabilities, in place, into the cross-entropy's gradient: probabilities, less one at the token."""
    slope = log_p.exp_()
    slope[torch.arange(len(target), device=target.device), target] -= 1
    return slope


def _scaled(gradient: Tensor, grad: Tensor) -> Tensor:
    # A dropped row may have a loss, and so a gradient, that is not finite.
    return torch.where(grad[:, None] == 0, 0, gradient * grad[:, None]).to(gradient.dtype)


def _chunks(count: int, weight: Tensor) -> Iterator[slice]:
    rows = rows_at_a_time(len(weight))
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
