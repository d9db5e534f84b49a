"""What a model makes of its labels beside the mean loss of the tokens: losses of its routers, z-losses and the like.

A model of transformers computes its loss in two steps: `self.loss_function(logits, labels, ...)`, and what it adds to
that. With nothing in the place of the first, the second is left, by the model's own coefficient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sstoken_plugin.engine.losses import token_nll
from sstoken_plugin.engine.modes import class_name, replaced, trial_tokens, without_trace
from sstoken_plugin.engine.output_head import ProvenWays, ResponseHead
from sstoken_plugin.engine.run import Names
from sstoken_plugin.engine.visibility import causal_fix, refuse_encoder_decoder, refuse_sight_of_the_future
from sstoken_plugin.selection.samples import IGNORE_INDEX, BatchLayout

# Of what a model adds, or of a loss: far above the rounding of float32, far below a coefficient or another mean.
_ROOM = 1e-3


@dataclass(frozen=True)
class OwnLoss:
    """How to get what a model adds to its loss.

    Attributes:
        adds: whether it adds anything.
        reads_all_logits: whether what it adds depends on logits that predict no response token.
    """

    adds: bool = False
    reads_all_logits: bool = False

    @classmethod
    def of(cls, model: Any, names: Names = Names(), ways: ProvenWays | None = None) -> OwnLoss:
        """Find out by trial passes over a few tokens.

        Args:
            model: the unwrapped model. It is not changed.
            names: what the trainer's users call things.
            ways: see `ResponseHead`.

        Raises:
            ValueError: the model's loss is not the mean loss of the next tokens; one sentence with key and fix.
        """
        refuse_encoder_decoder(model, names)
        refuse_sight_of_the_future(model, names)
        tokens = trial_tokens(model)
        labels = tokens.clone()
        labels[:, : tokens.shape[1] // 2] = IGNORE_INDEX
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
        layout = BatchLayout.of({**inputs, "labels": labels})
        with without_trace(model):
            whole = model(**inputs, labels=labels)
            if whole.loss is None:
                return cls()
            added = narrowed = 0.0
            with added_only(model, labels) as asked:
                rest = model(**inputs).loss.item()
                # A model that does not ask for its loss function has computed all of it.
                if asked:
                    added = rest
                    with ResponseHead(model, layout, ways).narrowed():
                        narrowed = model(**inputs).loss.item()
        mean = token_nll(whole.logits.flatten(0, 1)[layout.logit_position], layout.target).mean().item()
        own = whole.loss.item() - added
        room = max(_ROOM, 8 * torch.finfo(whole.logits.dtype).eps)
        if abs(own - mean) > room * abs(mean):
            raise ValueError(
                f"{names.model}: {class_name(model)} computes another loss than the mean loss of the next tokens "
                f"({own:.3f} for {mean:.3f}), as decoders of encoder-decoder models do; {causal_fix(names)}."
            )
        return cls(adds=added != 0, reads_all_logits=abs(narrowed - added) > room * abs(added))


@contextmanager
def added_only(model: Any, labels: Tensor) -> Iterator[list[bool]]:
    """Give a model labels inside the block, so that its output's `loss` is what it adds to the loss and nothing more.

    Args:
        model: the unwrapped model.
        labels: int64 [B, S], of the batch that it will run on.

    Yields:
        A list that is empty as long as the model did not ask for its loss function.
    """
    asked: list[bool] = []

    # Compiled, both would be compiled anew for every batch.
    @torch.compiler.disable
    def nothing(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked.append(True)
        return torch.zeros((), device=logits.device)

    @torch.compiler.disable
    def give(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return args, {**kwargs, "labels": labels}

    with ExitStack() as stack:
        # Which of the models inside another computes the loss is its own affair.
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                # Where the property `loss_function` keeps it.
                stack.enter_context(replaced(module, "_loss_function", nothing))
        stack.callback(model.register_forward_pre_hook(give, with_kwargs=True).remove)
        yield asked
