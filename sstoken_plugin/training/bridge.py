"""What differs between the trainers of frameworks: how selection gets into one, and what its run is."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, DefaultDataCollator, Trainer

from sstoken_plugin.base import refusal
from sstoken_plugin.engine.modes import class_name
from sstoken_plugin.engine.run import Run
from sstoken_plugin.history.inits import base_change
from sstoken_plugin.history.named import refuse_unfit_names
from sstoken_plugin.selection.config import SSTokenConfig

PACKAGE = "sstoken_plugin"
# Packages whose trainers have a bridge of their own.
FRAMEWORKS = ("llamafactory", "swift", "trl")
_TAKES_ROWS_AS_THEY_ARE = (DataCollatorForSeq2Seq, DataCollatorWithFlattening, DefaultDataCollator)
# Of PEFT's kinds that bring tokens, those whose tokens have no place in the text.
_AMONG_KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")
_OTHER_TASKS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


class Bridge:
    """How selection gets into the trainers of one framework; this one serves transformers' own Trainer.

    Attributes:
        front: a class that is put before a trainer's own, so that its methods come first; None for none. It overrides
            what would keep `TokenSelectionTrainer.compute_loss` from being reached.
    """

    front: type | None = None

    def refuse(self, trainer: Any, config: SSTokenConfig) -> None:
        """Refuse settings of a trainer beside which the selection cannot run.

        Raises:
            ValueError: there are such settings; one sentence with key, reason and way out.
        """
        if getattr(trainer, "label_smoother", None) is not None:
            raise ValueError(
                "label_smoothing_factor: it changes the loss of a token, which selection compares with the history's; "
                "remove it, or train without sstoken."
            )
        if trainer.args.n_gpu > 1:
            raise ValueError(
                f"n_gpu: one process for {trainer.args.n_gpu} GPUs splits a batch after selection has looked at it; "
                "start a process for each with accelerate launch or torchrun, or name one in CUDA_VISIBLE_DEVICES."
            )
        parallel = getattr(trainer.accelerator, "parallelism_config", None)
        for name in ("cp_size", "sp_size", "tp_size"):
            if (getattr(parallel, name, 1) or 1) > 1:
                raise ValueError(
                    f"parallelism_config: {name}={getattr(parallel, name)} splits a sample or the output head over "
                    "ranks, and selection ranks whole samples; remove it, or train without sstoken."
                )
        _refuse_engine(trainer.accelerator, config)
        _refuse_model(trainer.model)
        refuse_unfit_names(config)
        if trainer.train_dataset is not None and not hasattr(trainer.train_dataset, "__len__"):
            raise ValueError(
                "train_dataset: a stream has not been tested with selection, which looks at the data before it is "
                "trained on; load the data set whole, or train without sstoken."
            )

    def run_of(self, trainer: Any, config: SSTokenConfig) -> Run:
        """Return what the trainer's run is to the selection."""
        model = trainer.model
        return Run(
            base_model=base_model_of(model),
            seed=trainer.args.seed,
            plain_init=has_plain_init(model),
            # Frameworks bring collators that do.
            rows_are_final=type(self) is not Bridge or type(trainer.data_collator) in _TAKES_ROWS_AS_THEY_ARE,
        )


def _refuse_engine(accelerator: Any, config: SSTokenConfig) -> None:
    """Refuse engines that hide weights which the selection has to reach."""
    state = getattr(accelerator, "state", None)
    if getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", 2) == 1:
        raise ValueError(f"fsdp_version: 1 {refusal.FSDP1}; set fsdp_version: 2, or train without sstoken.")
    if getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", 0) != 3:
        return
    whole = {"history": config.history_is_path, "history_cache": config.cache_folder is not None}
    for key in (key for key, asked in whole.items() if asked):
        raise ValueError(f"sstoken.{key}: {getattr(config, key)} {refusal.ZERO_3}; {refusal.ZERO_3_WAY_OUT}.")


def _refuse_model(model: Any) -> None:
    """Refuse models of other tasks, and adapters that put tokens of their own before those of a sample."""
    if model is None:
        return
    name = class_name(model)
    if name.endswith(_OTHER_TASKS):
        raise ValueError(
            f"model: {name} does not predict the next token, whose loss selection ranks by; train a model for causal "
            "language modelling, or train without sstoken."
        )
    for adapter in getattr(model, "peft_config", {}).values():
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        if getattr(adapter, "is_prompt_learning", False) and kind not in _AMONG_KEYS_AND_VALUES:
            raise ValueError(
                f"peft_type: {kind} puts tokens of its own before those of a sample, so that losses stand elsewhere "
                "than the labels; use LoRA, or train without sstoken."
            )


def base_model_of(model: Any) -> str:
    """Return the name or folder that a model, or the base of its adapter, was loaded from."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return str(getattr(base, "name_or_path", "") or base.config.name_or_path)


def has_plain_init(model: Any) -> bool:
    """Tell whether making a model's adapters left the base weights as they are, by the adapters' own settings."""
    adapters = getattr(model, "peft_config", {})
    return not any(map(base_change, adapters.values()))


def bridge_of(trainer: Trainer) -> Bridge:
    """Return the bridge of the framework that a trainer comes from.

    That of package `xyz` is `BRIDGE` in `sstoken_plugin/xyz/bridge.py`; the nearest base class of the trainer decides.
    """
    for kind in type(trainer).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in FRAMEWORKS:
            bridge: Bridge = import_module(f"{PACKAGE}.{package}.bridge").BRIDGE
            return bridge
    return Bridge()
