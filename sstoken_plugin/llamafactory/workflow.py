"""Where LLaMA-Factory makes the trainer of supervised fine-tuning, and how selection gets into it."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from sstoken_plugin.llamafactory import releases

MODULE, TRAINER, RUN = "llamafactory.train.sft.workflow", "CustomSeq2SeqTrainer", "run_sft"


def take_over() -> None:
    """Let every trainer that LLaMA-Factory makes from now on in this process select if its YAML asks for it.

    Raises:
        ValueError: this LLaMA-Factory makes its trainer in another way, so that nothing would be selected.
    """
    module = import_module(MODULE)
    make, run = getattr(module, TRAINER, None), getattr(module, RUN, None)
    trainer_class = make.trainer_class if isinstance(make, _Making) else make
    if not (
        isinstance(trainer_class, type)
        and "finetuning_args" in inspect.signature(trainer_class).parameters
        and inspect.isfunction(run)
        and TRAINER in run.__code__.co_names
    ):
        supported = ".".join(map(str, releases.SUPPORTED))
        raise ValueError(
            f"sstoken: this LLaMA-Factory does not make its trainer as {supported} does, and nothing would be selected"
            f"; install {supported}, or remove the `sstoken:` block."
        )
    setattr(module, TRAINER, _Making(trainer_class))


class _Making:
    """Stands for the class of LLaMA-Factory's trainer where it is called."""

    def __init__(self, trainer_class: type):
        self.trainer_class = trainer_class

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the trainer, and attach the selection if the run has a block."""
        from sstoken_plugin.attachment import attach
        from sstoken_plugin.llamafactory.arguments import Asked

        trainer = self.trainer_class(*args, **kwargs)
        asked = Asked.of(trainer)
        return trainer if asked is None else attach(trainer, asked.config)
