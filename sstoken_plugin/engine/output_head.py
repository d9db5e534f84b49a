"""A model's output head, run where a response token is predicted and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sstoken_plugin.base.logs import logger
from sstoken_plugin.engine.linear_nll import RowLosses, linear_nll
from sstoken_plugin.engine.losses import token_nll
from sstoken_plugin.engine.modes import without_trace
from sstoken_plugin.engine.sharding import is_sharded
from sstoken_plugin.selection.samples import BatchLayout

LOG = logger(__name__)

# Tokens on which a fast way must agree with the model's own logits, in a trial pass.
_PROOF_TOKENS = 8

# Keys of a batch that are no arguments of a forward pass that scores, or have another value there.
_NOT_FOR_SCORING = ("labels", "num_items_in_batch", "use_cache")


class ProvenWays:
    """Remembers what computes the losses of an output head, so that it is looked for once for each head."""

    def __init__(self) -> None:
        # By head and by what was tried before our own; None for the model's own logits.
        self._chosen: MutableMapping[nn.Module, dict[tuple[RowLosses, ...], RowLosses | None]] = WeakKeyDictionary()

    def choose(self, model: Any, layout: BatchLayout, kernels: Sequence[RowLosses] = ()) -> RowLosses | None:
        """Return the first way that agrees with the model's own logits on tokens of a batch; None if there is none.

        Args:
            model: the unwrapped model. It is not changed.
            layout: of the batch.
            kernels: per-token losses that are tried first, in this order.
        """
        head: Any = model.get_output_embeddings()
        if head is None or not len(layout.target):
            return None
        known, tried = self._chosen.setdefault(head, {}), tuple(kernels)
        if tried not in known:
            known[tried] = None
            for losses in dict.fromkeys((*tried, linear_nll)):
                reason = why_not(losses, model, head, layout.target[:_PROOF_TOKENS])
                if reason is None:
                    known[tried] = losses
                    break
                LOG.warning(
                    "ssToken: %s does not serve the output head, which costs time and memory: %s.",
                    _name(losses), reason,
                )  # fmt: skip
        return known[tried]


class ResponseHead:
    """The losses of a batch's response tokens, from a forward pass inside `narrowed`.

    The head is reached by a hook on the module, inside the model's own forward pass. Where logits are a linear
    function of the hidden states and nothing more, which a trial pass shows, losses and gradients are computed
    there (`linear_nll`, or a fused kernel). Else the head runs on the rows that are needed, so that scaling and soft
    caps of logits, sharding and quantisation apply as ever. A model whose head is no module of its own computes all
    logits, and `nll` takes the rows that are needed.

    Args:
        model: the unwrapped model that will run.
        layout: of the batch that it will run on.
        ways: remembers what was found out about the model's head; None to find it out anew.
        kernels: per-token losses that a user has switched on, tried first; see `kernels`.
    """

    def __init__(
        self, model: Any, layout: BatchLayout, ways: ProvenWays | None = None, kernels: Sequence[RowLosses] = ()
    ):
        self._head: Any = model.get_output_embeddings()
        self._losses = (ways or ProvenWays()).choose(model, layout, kernels)
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
        if self._losses is not None:
            self._nll = self._losses(rows, module.weight, module.bias, self._layout.target)
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


def response_nll(
    model: Any, batch: Mapping[str, Tensor], layout: BatchLayout, ways: ProvenWays | None = None
) -> Tensor:
    """Run a model on a batch, and return the loss of each response token in nats, float32 [R].

    Args:
        model: an unwrapped model.
        batch: see `BatchLayout.of`, and whatever else the model takes.
        layout: its layout.
        ways: see `ResponseHead`.
    """
    inputs = {key: value for key, value in batch.items() if key not in _NOT_FOR_SCORING}
    head = ResponseHead(model, layout, ways)
    with head.narrowed():
        # With a cache, transformers does not see that a row is packed, and samples leak into each other.
        logits = model(**inputs, use_cache=False).logits
    return head.nll(logits)


def why_not(losses: RowLosses, model: Any, head: Any, tokens: Tensor) -> str | None:
    """Tell why `losses` may not take the place of a model's output head; None if it may.

    Losses and gradients are compared with those of the model's own logits, in a forward pass over a few tokens.

    Args:
        losses: see `RowLosses`.
        model: the unwrapped model. It is not changed.
        head: its output head.
        tokens: int64 [n], tokens that the model knows.
    """
    if is_sharded(model):
        return "its weights are sharded over the ranks"
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return f"it is a {type(head).__name__}, not a plain linear layer"
    if "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks:
        return "another library has hooks on it"
    found: list[Tensor] = []
    failed: list[str] = []
    precision: list[torch.dtype] = []

    def watch(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits = nn.functional.linear(args[0], module.weight, module.bias)
        # Here an autocast of the model is in force.
        precision.append(logits.dtype)
        # Far from zero, where a soft cap shows.
        rows = (args[0] * (100 / logits.abs().max())).detach().flatten(0, 1).requires_grad_()
        try:
            nll = losses(rows, module.weight, module.bias, tokens)
            found.extend([nll, *torch.autograd.grad(nll.sum(), rows), rows])
        except NotImplementedError as error:
            failed.append(str(error))
        except Exception as error:
            failed.append(f"it failed ({type(error).__name__}: {error})")
        return (rows[None],)

    handle = head.register_forward_pre_hook(watch)
    try:
        with without_trace(model), torch.enable_grad():
            logits = model(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None], use_cache=False).logits
            if failed:
                return failed[0]
            nll, gradient, rows = found
            own = token_nll(logits[0], tokens)
            (own_gradient,) = torch.autograd.grad(own.sum(), rows)
    finally:
        handle.remove()
    if not bool(torch.isfinite(own).all() and torch.isfinite(own_gradient).all()):
        return "a trial pass of the model gives losses that are not finite"
    # Rounding of the head's own precision, which is coarse at losses of about 100.
    room = max(1e-4, 8 * torch.finfo(precision[0]).eps)
    for ours, theirs in ((nll, own), (gradient, own_gradient)):
        if not (ours - theirs).float().norm() <= room * theirs.float().norm():
            return "its model does more to logits than the head itself"
    return None


def _name(losses: Any) -> str:
    return str(getattr(losses, "__name__", losses))
