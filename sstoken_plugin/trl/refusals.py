"""What of TRL cannot run beside token selection, why, and the way out: each refusal is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import IterableDataset
from trl import SFTTrainer

from sstoken_plugin.base.refusal import Refusal
from sstoken_plugin.training.trainer import TokenSelectionTrainer

# Names of the mean loss of all labelled tokens: they differ in how it is computed.
PLAIN_LOSSES = ("nll", "chunked_nll")


def _other_trainer(trainer: Any) -> str | None:
    return None if isinstance(trainer, SFTTrainer) else type(trainer).__name__


def _own_loss(trainer: Any) -> str | None:
    """Name the class, if it is not TRL's, whose loss the selection would take the place of."""
    # A class that is derived from one of ours calls it.
    kinds = [kind for kind in type(trainer).__mro__ if not issubclass(kind, TokenSelectionTrainer)]
    owner = next((kind for kind in kinds if "compute_loss" in vars(kind) and not _is_ours(kind)), SFTTrainer)
    return None if owner is SFTTrainer or not isinstance(trainer, SFTTrainer) else owner.__name__


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "sstoken_plugin"


def _loss_type(trainer: Any) -> str | None:
    kind = getattr(trainer.args, "loss_type", None)
    return None if kind in (None, *PLAIN_LOSSES) else kind


def _fused_loss(trainer: Any) -> bool | None:
    # From TRL 1.16 on, this is switched off when the trainer is made, and Liger's other kernels are welcome.
    fuses = (trainer.args.liger_kernel_config or {}).get("fused_linear_cross_entropy", True)
    return True if trainer.args.use_liger_kernel and fuses else None


def _images(trainer: Any) -> str | None:
    return "images" if getattr(trainer, "_is_vision_dataset", False) else None


def _wrapped(trainer: Any) -> str | None:
    args = trainer.args
    wraps = getattr(args, "packing", False) and getattr(args, "packing_strategy", None) == "wrapped"
    return "wrapped" if wraps else None


def _streams(trainer: Any) -> str | None:
    return "a stream" if isinstance(trainer.train_dataset, IterableDataset) else None


def _other_adapter(trainer: Any) -> str | None:
    adapters = getattr(trainer.model, "peft_config", {}).values()
    kinds = [str(getattr(adapter.peft_type, "value", adapter.peft_type)) for adapter in adapters]
    return next((kind for kind in kinds if kind != "LORA"), None)


# How to see what is refused of a trainer, as the sentence shows it (None where nothing is), and the refusal.
REFUSALS: tuple[tuple[Callable[[Any], Any], Refusal], ...] = (
    (
        _other_trainer,
        Refusal("trainer", "has a loss other than that of labelled tokens", way_out="use TRL's SFTTrainer"),
    ),
    (
        _own_loss,
        Refusal(
            "compute_loss",
            "computes a loss of its own, which selection would take the place of",
            way_out="derive it from sstoken_plugin.trl.SSTokenSFTTrainer, whose compute_loss is the selected loss",
        ),
    ),
    (
        _loss_type,
        Refusal(
            "loss_type",
            "weights the loss of each token, in place of which sstoken computes the plain mean over the selected ones",
            way_out="leave it out",
        ),
    ),
    (
        _fused_loss,
        Refusal(
            "use_liger_kernel",
            "brings a forward pass that computes the loss of all tokens at once",
            way_out="set it to false",
        ),
    ),
    (
        _images,
        Refusal(
            "train_dataset",
            "are fed to the model, and selection reads text tokens only",
            way_out="leave the column out",
        ),
    ),
    (
        _streams,
        Refusal(
            "dataset_streaming",
            "has not been tested with selection, which looks through the data before it begins",
            way_out="load the data set whole",
        ),
    ),
    (
        _wrapped,
        Refusal(
            "packing_strategy",
            "cuts samples in two and lets those of a row see each other, and selection scores a sample as if alone",
            way_out="set packing_strategy: bfd",
        ),
    ),
    (
        _other_adapter,
        Refusal(
            "peft_config",
            "may train parts that stay in force when the adapter is switched off, and the history would not be the "
            "first model",
            way_out="use LoraConfig",
        ),
    ),
)


def refuse(trainer: Any) -> None:
    """Refuse a trainer beside which the selection cannot run.

    Raises:
        ValueError: it cannot; one sentence with key, reason and way out.
    """
    for holds, refusal in REFUSALS:
        found = holds(trainer)
        if found is not None:
            refusal.refuse(found, "train without sstoken")
