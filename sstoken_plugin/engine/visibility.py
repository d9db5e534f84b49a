"""Which tokens a model sees when it predicts another: those before it in its sample, or it cannot be selected for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.engine.modes import class_name, trial_tokens, without_trace
from sstoken_plugin.engine.output_head import ProvenWays, response_nll
from sstoken_plugin.engine.run import Names
from sstoken_plugin.selection.samples import BatchLayout

_NEEDED = "selection is for models that predict each token from those before it"
# Of a logit, or of a loss: far above rounding, far below what another token does.
_ROOM = 1e-3


def causal_fix(names: Names) -> str:
    """Return what a user can do about a model that cannot be selected for."""
    return f"choose a causal language model, or {names.without}"


def refuse_encoder_decoder(model: Any, names: Names = Names()) -> None:
    """Refuse a model whose decoder needs labels, or tokens of its own, to run at all.

    Args:
        model: the unwrapped model, with or without adapter.
        names: what the trainer's users call things.

    Raises:
        ValueError: it has an encoder and a decoder; one sentence with key and fix.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{names.model}: {class_name(model)} has an encoder that reads the text and a decoder that answers it, and "
            f"{_NEEDED}; {causal_fix(names)}."
        )


def refuse_sight_of_the_future(model: Any, names: Names = Names()) -> None:
    """Refuse a model whose logits depend on tokens that are still to come, as those of prefix models on text do.

    Args:
        model: the unwrapped model. It is not changed.
        names: what the trainer's users call things.

    Raises:
        ValueError: they do; one sentence with key and fix.
    """
    tokens = trial_tokens(model)
    other = tokens.clone()
    other[:, -1] = tokens[:, 0]
    with without_trace(model):
        one, two = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1].float()
            for ids in (tokens, other)
        )
    if bool((one - two).nan_to_num().norm() > _ROOM * one.nan_to_num().norm()):
        raise ValueError(
            f"{names.model}: {class_name(model)} sees tokens that are still to come, and {_NEEDED}; "
            f"{causal_fix(names)}."
        )


def samples_see_each_other(model: Any, batch: Mapping[str, Tensor], ways: ProvenWays | None = None) -> bool | None:
    """Tell whether losses in packed rows depend on other samples of the row; None if this batch does not show it.

    Args:
        model: the unwrapped model. It is not changed.
        batch: see `BatchLayout.of`, and whatever else the model takes.
        ways: see `response_nll`.
    """
    # Without first tokens, which plain training predicts from the sample before.
    layout = BatchLayout.of(batch)
    segment = layout.segment.view(layout.shape)
    most = segment.max() + 1
    first = torch.where(layout.real, segment, most).amin(dim=1, keepdim=True)
    is_first = (segment == first) & layout.real
    later = ~is_first.flatten()[layout.position]
    if not bool(later.any()):
        return None
    changed = batch["input_ids"].clone()
    for row, marks in zip(changed, is_first, strict=True):
        # The same tokens in another order: a model may know some that must not stand elsewhere.
        row[marks] = row[marks].roll(1)
    with without_trace(model):
        one, two = (
            response_nll(model, {**batch, "input_ids": ids}, layout, ways)[later]
            for ids in (batch["input_ids"], changed)
        )
    finite = torch.isfinite(one) & torch.isfinite(two)
    return bool((one - two)[finite].norm() > _ROOM * one[finite].norm())
