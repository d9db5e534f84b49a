"""What of TRL cannot run beside token selection, why, and the way out: each refusal is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import IterableDataset
from trl import SFTTrainer

from sstoken_plugin.training.trainer import TokenSelectionTrainer

# Names of the mean loss of all labelled tokens: they differ in how it is computed.
PLAIN_LOSSES = ("nll", "chunked_nll")


class Refusal(NamedTuple):
    """What a trainer must not be or be told.

    Attributes:
        key: the setting.
        holds: what is refused of it, as the sentence shows it; None where nothing is.
        reason: goes on where the sentence has named the key and what is refused.
        way_out: how to go on.
    """

    key: str
    holds: Callable[[Any], Any]
    reason: str
    way_out: str


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


def _splits_samples(trainer: Any) -> str | None:
    parallel = trainer.accelerator.parallelism_config
    sizes = {name: getattr(parallel, f"{name}_size", 1) or 1 for name in ("cp", "sp", "tp")}
    return next((f"{name}_size={size}" for name, size in sizes.items() if size > 1), None)


REFUSALS = (
    Refusal("trainer", _other_trainer, "has a loss other than that of labelled tokens", "use TRL's SFTTrainer"),
    Refusal(
        "compute_loss",
        _own_loss,
        "computes a loss of its own, which selection would take the place of",
        "derive it from sstoken_plugin.trl.SSTokenSFTTrainer, whose compute_loss is the selected loss, or train "
        "without sstoken",
    ),
    Refusal(
        "loss_type",
        _loss_type,
        "weights the loss of each token, in place of which sstoken computes the plain mean over the selected ones",
        "leave it out, or train without sstoken",
    ),
    Refusal(
        "use_liger_kernel",
        _fused_loss,
        "brings a forward pass that computes the loss of all tokens at once",
        "set it to false, or train without sstoken",
    ),
    Refusal(
        "train_dataset",
        _images,
        "are fed to the model, and selection reads text tokens only",
        "leave the column out, or train without sstoken",
    ),
    Refusal(
        "dataset_streaming",
        _streams,
        "has not been tested with selection, which looks through the data before it begins",
        "load the data set whole, or train without sstoken",
    ),
    Refusal(
        "packing_strategy",
        _wrapped,
        "cuts samples in two and lets those of a row see each other, and selection scores a sample as if alone",
        "set packing_strategy: bfd",
    ),
    Refusal(
        "peft_config",
        _other_adapter,
        "may train parts that stay in force when the adapter is switched off, and the history would not be the first "
        "model",
        "use LoraConfig, or train without sstoken",
    ),
    Refusal(
        "parallelism_config",
        _splits_samples,
        "splits a sample or the output head over ranks, and selection ranks whole samples",
        "remove it, or train without sstoken",
    ),
)


def refuse(trainer: Any) -> None:
    """Refuse a trainer beside which the selection cannot run.

    Raises:
        ValueError: it cannot; one sentence with key, reason and way out.
    """
    for key, holds, reason, way_out in REFUSALS:
        found = holds(trainer)
        if found is not None:
            raise ValueError(f"{key}: {found} {reason}; {way_out}.")
