"""Per-token losses: logits where a response token is predicted, and the loss of each such token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sstoken_plugin.samples import BatchLayout


class ResponseHead:
    """Runs a model's output head on the positions that predict response tokens and on no other.

    The head is reached by a hook on the module, inside the model's own forward pass, so that scaling and
    soft caps of logits, sharding and quantisation apply as ever. A model whose head is no module of its
    own computes all logits, and `select` takes the rows that are needed.
    """

    def __init__(self, model: Any, layout: BatchLayout):
        self._head: nn.Module | None = model.get_output_embeddings()
        self._shape = layout.shape
        self._rows = layout.logit_position
        self._narrowed = False

    @contextmanager
    def narrowed(self) -> Iterator[None]:
        """Narrow the head's input for the forward pass inside the block."""
        if self._head is None:
            yield
            return
        handle = self._head.register_forward_pre_hook(self._narrow)
        try:
            yield
        finally:
            handle.remove()

    # Compiled, it would be compiled anew for every number of response tokens.
    @torch.compiler.disable
    def _narrow(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or args[0].shape[:-1] != self._shape:
            return args
        hidden, *rest = args
        self._narrowed = True
        return (hidden.reshape(-1, hidden.shape[-1])[self._rows][None], *rest)

    def select(self, logits: Tensor) -> Tensor:
        """Return the logits that predict each response token, float [R, V].

        Args:
            logits: the model's output, [1, R, V] after narrowing, [B, S, V] without.
        """
        return logits[0] if self._narrowed else logits.flatten(0, 1)[self._rows]


def token_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log likelihood of each token in nats, float32 [R].

    Args:
        logits: float [R, V].
        target: int64 [R].
    """
    # float32 as in transformers' own causal loss.
    return functional.cross_entropy(logits.float(), target, reduction="none")


def mean_kept(nll: Tensor, kept: Tensor, items: Tensor | int | None) -> Tensor:
    """The training loss: the summed loss of kept tokens over a normaliser, a scalar with gradient.

    Args:
        nll: float32 [R], with gradient.
        kept: bool [R].
        items: what to divide by; None divides by the number of kept tokens, as a mean over a micro-batch.
    """
    total = nll[kept].sum()
    if items is None:
        return total / kept.sum().clamp(min=1)
    return total / torch.as_tensor(items, device=total.device)
