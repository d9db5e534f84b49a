"""What ms-swift must not be asked for beside token selection: each refusal is one sentence with the way out."""

from __future__ import annotations

from typing import Any

from sstoken_plugin.base.refusal import Refusal, asked_for
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.swift.settings import WITHOUT

_UNTRIED = "has not been run with selection"
TRAINER = Refusal(
    "task_type",
    "is not trained by the loss of labelled tokens",
    "any but causal_lm, and every `rlhf_type`",
    "train with `swift sft`",
)
ARGUMENTS = (
    Refusal("enable_dft_loss", "multiplies the loss of each token by its probability"),
    Refusal("enable_channel_loss", "splits the loss of all tokens by channel"),
    Refusal("loss_type", "brings a loss of its own"),
    Refusal("label_smoothing_factor", "changes the loss of a token, which selection compares with the history's"),
    Refusal("use_flash_ckpt", f"writes checkpoints in a way that {_UNTRIED}"),
)
TUNER = Refusal(
    "tuner_type",
    "trains an adapter that the history switches off, which has not been tested with this kind",
    "any but lora and full",
    "set `tuner_type: lora` or full",
)
UNSLOTH = Refusal(
    "tuner_backend", "computes attention in kernels that do not show it", "unsloth, where prompt attention ranks",
    "set `tuner_backend: peft`",
)  # fmt: skip
LISA = Refusal(
    "lisa_activated_layers",
    "switches layers on and off while the history keeps the weights that train at the start",
    "where a history ranks",
)
PACKING = Refusal("packing", _UNTRIED)
PADDING_FREE = Refusal("padding_free", _UNTRIED)
STREAMING = Refusal("streaming", "streams its data, which has not been tested with selection")
SEQUENCE = Refusal("sequence_parallel_size", "splits a sample over ranks, and selection ranks whole samples", "above 1")
LOSS_SCALE = Refusal(
    "loss_scale",
    "weighs tokens against each other, and selection keeps a token or leaves it out",
    "with weights other than 0 and 1",
    "choose one of default, last_round and all",
)
MODEL = Refusal(
    "model",
    "reads images, audio or video, or computes its loss itself, and selection reads text tokens only",
    "of more than text, or with a loss of its own",
    "choose a causal language model of text",
)
REFUSALS = (
    TRAINER, *ARGUMENTS, TUNER, UNSLOTH, LISA, PACKING, PADDING_FREE, STREAMING, SEQUENCE, LOSS_SCALE, MODEL,
)  # fmt: skip

# Ways of training that should work and have not been run on what they are made for.
UNTESTED = ("deepspeed", "fsdp", "use_liger_kernel", "use_galore", "tuner_backend: unsloth")


def refuse(config: SSTokenConfig, trainer: Any) -> None:
    """Refuse what cannot run beside the selection.

    Args:
        config: the settings.
        trainer: ms-swift's trainer.

    Raises:
        ValueError: one sentence with the key, the reason and the way out.
    """
    from swift.template import Template
    from swift.trainers import Seq2SeqTrainer

    args, template = trainer.args, trainer.template
    if not isinstance(trainer, Seq2SeqTrainer):
        TRAINER.refuse(getattr(args, "rlhf_type", None) or trainer.task_type, WITHOUT)
    for refusal in ARGUMENTS:
        if value := getattr(args, refusal.key, None):
            refusal.refuse(value, WITHOUT)
    if (tuner := args.tuner_type) not in ("lora", "full"):
        TUNER.refuse(tuner, WITHOUT)
    if args.tuner_backend == "unsloth" and config.ranks_by_attention:
        UNSLOTH.refuse("unsloth", WITHOUT)
    if args.lisa_activated_layers and config.needs_history:
        LISA.refuse(args.lisa_activated_layers, WITHOUT)
    for flag in (PACKING, PADDING_FREE):
        if getattr(template, flag.key):
            flag.refuse(True, WITHOUT)
    if not hasattr(trainer.train_dataset, "__len__"):
        STREAMING.refuse(True, WITHOUT)
    if template.sequence_parallel_size > 1:
        SEQUENCE.refuse(template.sequence_parallel_size, WITHOUT)
    binary = template.is_binary_loss_scale
    if not (template.loss_scale.is_binary_loss_scale if binary is None else binary):
        LOSS_SCALE.refuse(template._loss_scale, WITHOUT)
    own_loss = type(template).compute_sft_loss is not Template.compute_sft_loss
    if own_loss or trainer.model_meta.is_multimodal:
        MODEL.refuse(trainer.model_info.model_dir, WITHOUT)


def untested(args: Any) -> list[str]:
    """Return the keys that ask for a way of training which nobody has tried with the selection."""
    return asked_for(UNTESTED, lambda key: getattr(args, key, None))
