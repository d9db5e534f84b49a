"""Losses of tokens from their logits, and the training loss from those that are kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sstoken_plugin.engine.linear_nll import rows_at_a_time


def token_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log likelihood of each token in nats, float32 [R].

    Args:
        logits: float [R, V].
        target: int64 [R].
    """
    # float32 as in transformers' own causal loss; copies of few rows, where none has to wait for a backward pass.
    if torch.is_grad_enabled():
        return functional.cross_entropy(logits.float(), target, reduction="none")
    rows = rows_at_a_time(logits.shape[1])
    parts = zip(logits.split(rows), target.split(rows), strict=True)
    return torch.cat([functional.cross_entropy(some.float(), own, reduction="none") for some, own in parts])


def mean_kept(nll: Tensor, kept: Tensor, items: Tensor | int | None) -> Tensor:
    """The training loss: the summed loss of kept tokens over a normaliser, a scalar with gradient.

    Args:
        nll: float32 [R], with gradient.
        kept: bool [R].
        items: what to divide by; None divides by the number of kept tokens, as a mean over a micro-batch.
    """
    # Not `nll[kept]`, for which the program would wait for the device before the backward pass.
    total = torch.where(kept, nll, 0).sum()
    if items is None:
        return total / kept.sum().clamp(min=1)
    return total / torch.as_tensor(items, device=total.device)
