"""What a run is to the selection, whatever trainer it runs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sstoken_plugin.base.logs import OWN
from sstoken_plugin.engine.linear_nll import RowLosses


@dataclass(frozen=True)
class Names:
    """How the users of a trainer call what our sentences speak of.

    Attributes:
        trainer: the trainer itself.
        model: the setting that names the base model.
        data: the setting that names the data.
        packing: the setting that packs samples into rows; "" where the data collator alone does.
        adapter_init: the setting that says how an adapter is initialised.
        fused_losses: settings that fuse the output head with the loss, joined by "or".
        rate_warmup: settings of the learning rate's warm-up, joined by "or".
        without: how to train without the selection; finishes the sentence "..., or ...".
        compare: a sentence that says how to find out whether the selection pays against plain training.
        announcer: the logger whose INFO lines users see; frameworks show those below their own only.
    """

    trainer: str = "the trainer"
    model: str = "model"
    data: str = "train_dataset"
    packing: str = ""
    adapter_init: str = "init_lora_weights"
    fused_losses: str = "use_liger_kernel"
    rate_warmup: str = "warmup_steps"
    without: str = "train without sstoken"
    compare: str = (
        "Train once more with `selector: all`, the same data and the same seed, and compare the evaluation losses, "
        "better over several seeds."
    )
    announcer: str = OWN


def as_it_is(model: nn.Module, trained: nn.Module) -> nn.Module:
    """Return a model that is loaded beside the trained one unchanged, where the trainer patches no classes."""
    return model


@dataclass(frozen=True)
class Run:
    """The facts of a run that the selection needs; each integration fills it once.

    Attributes:
        base_model: name or folder of the base model.
        revision: of the base model on its hub.
        dtype: in which the base model is loaded; None for that of the model's embeddings.
        data: what it trains on, for the page: names of data sets; "" where the trainer does not tell.
        seed: of the run, for random selection where the settings give none.
        eot_tokens: texts that end a turn, beside what the tokenizer and the model declare.
        packs: whether the trainer packs samples into rows itself.
        rows_are_packed: whether rows of the data set hold several samples, which the trainer's batches keep apart.
        starts_from: folder of the adapter that training goes on from; None for a new one.
        plain_init: whether making the adapter left the base weights as they were.
        can_keep_losses: whether a history's losses may be kept; not where a setting of the run changes them.
        rows_are_final: whether batches hold the tokens and labels of the rows as they are.
        kernels: fused losses that the user switched on, tried before our own.
        second_model: makes a model run that was loaded beside the trained one: called with both, neither wrapped by
            PEFT, it returns the first.
        names: what the trainer's users call these things.
    """

    base_model: str
    revision: str | None = None
    dtype: torch.dtype | None = None
    data: str = ""
    seed: int = 0
    eot_tokens: tuple[str, ...] = ()
    packs: bool = False
    rows_are_packed: bool = False
    starts_from: Path | None = None
    plain_init: bool = True
    can_keep_losses: bool = True
    rows_are_final: bool = True
    kernels: tuple[RowLosses, ...] = ()
    second_model: Callable[[nn.Module, nn.Module], nn.Module] = as_it_is
    names: Names = Names()
