"""A model's output head, run where a response token is predicted and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sstoken_plugin.linear_nll import linear_nll
from sstoken_plugin.losses import token_nll
from sstoken_plugin.modes import trial_tokens, without_trace
from sstoken_plugin.samples import BatchLayout
from sstoken_plugin.sharding import is_sharded

LOG = logging.getLogger(__name__)

# Heads that were looked at, and whether `linear_nll` gives the losses of their model.
_IS_LINEAR: MutableMapping[nn.Module, bool] = WeakKeyDictionary()


class ResponseHead:
    """The losses of a batch's response tokens, from a forward pass inside `narrowed`.

    The head is reached by a hook on the module, inside the model's own forward pass. Where logits are a linear
    function of the hidden states and nothing more, `linear_nll` takes the head's place. Else the head runs on the
    rows that are needed, so that scaling and soft caps of logits, sharding and quantisation apply as ever. A model
    whose head is no module of its own computes all logits, and `nll` takes the rows that are needed.

    Args:
        model: the unwrapped model that will run.
        layout: of the batch that it will run on.
    """

    def __init__(self, model: Any, layout: BatchLayout):
        self._head: Any = model.get_output_embeddings()
        self._is_linear = self._head is not None and _is_linear(model, self._head)
        self._layout = layout
        self._narrowed = False
        self._nll: Tensor | None = None

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
    def _narrow(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or args[0].shape[:-1] != self._layout.shape:
            return args
        hidden, *rest = args
        self._narrowed = True
        rows = hidden.flatten(0, 1).index_select(0, self._layout.logit_position)
        if self._is_linear:
            self._nll = linear_nll(rows, module.weight, module.bias, self._layout.target)
            # The model still wants logits.
            rows = rows[:1]
        return (rows[None], *rest)

    def nll(self, logits: Tensor) -> Tensor:
        """Return the loss of each response token in nats, float32 [R], with gradient.

        Args:
            logits: the model's output.
        """
        if self._nll is not None:
            return self._nll
        rows = logits[0] if self._narrowed else logits.flatten(0, 1)[self._layout.logit_position]
        return token_nll(rows, self._layout.target)


def _is_linear(model: Any, head: nn.Module) -> bool:
    if head not in _IS_LINEAR:
        reason = why_not_linear(model, head)
        if reason is not None:
            LOG.warning("ssToken: the output head runs on all response tokens, kept or not: %s.", reason)
        _IS_LINEAR[head] = reason is None
    return _IS_LINEAR[head]


def why_not_linear(model: Any, head: nn.Module) -> str | None:
    """Tell why `linear_nll` may not take the place of a model's output head; None if it may.

    Args:
        model: the unwrapped model. It is not changed. A short forward pass is run.
        head: its output head.
    """
    if is_sharded(model):
        return "its weights are sharded over the ranks"
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return f"it is a {type(head).__name__}, not a plain linear layer"
    if "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks:
        return "another library has hooks on it"
    found: list[Tensor] = []

    def scale(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Far from zero, where a soft cap shows.
        hidden = args[0] * (100 / nn.functional.linear(args[0], head.weight, head.bias).abs().max())
        found.append(hidden)
        return (hidden,)

    handle = head.register_forward_pre_hook(scale)
    tokens = trial_tokens(model)
    try:
        with without_trace(model):
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    finally:
        handle.remove()
    hidden, tokens = found[0].flatten(0, 1), tokens.flatten()
    pairs = []
    for losses in (
        lambda rows: token_nll(nn.functional.linear(rows, head.weight, head.bias), tokens),
        lambda rows: linear_nll(rows, head.weight, head.bias, tokens),
    ):
        with torch.enable_grad():
            rows = hidden.detach().requires_grad_()
            nll = losses(rows)
            pairs.append((nll.detach(), torch.autograd.grad(nll.sum(), rows)[0]))
    own = (token_nll(logits.flatten(0, 1), tokens), pairs[0][1])
    # As exact as logits of about 100 are in the head's precision.
    room = 800 * torch.finfo(hidden.dtype).eps
    if not all(
        torch.allclose(one.float(), other.float(), rtol=1e-4, atol=room)
        for one, other in zip(own, pairs[1], strict=True)
    ):
        return "its model does more to logits than the head itself"
    return None
