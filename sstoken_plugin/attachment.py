"""The one way in: `attach(trainer, ratio=0.6)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from transformers import Trainer

from sstoken_plugin.base.visible_text import told_on_one_line
from sstoken_plugin.engine.run import Run
from sstoken_plugin.report.callback import watch
from sstoken_plugin.report.trackers import Trackers
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.training.attach import select_tokens
from sstoken_plugin.training.bridge import bridge_of
from sstoken_plugin.training.session import Session

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


@told_on_one_line()
def attach(trainer: AnyTrainer, settings: SSTokenConfig | Mapping[str, Any] | None = None, **keys: Any) -> AnyTrainer:
    """Make a trainer train on selected tokens: `attach(trainer, ratio=0.6).train()`.

    Args:
        trainer: a Trainer of transformers or of a framework that is built on it, before `train()`. It is changed: its
            class becomes one derived from its own.
        settings: the settings of the `sstoken:` block, see docs/configuration.md; None for every default.
        **keys: settings, which override those of the block.

    Returns:
        The same trainer.

    Raises:
        ValueError: a setting is not one, or the trainer's own settings do not go with the selection; one sentence.
    """
    if getattr(trainer, "sstoken", None) is not None:
        raise ValueError("sstoken: this trainer selects tokens already; attach once, with all settings.")
    if isinstance(settings, SSTokenConfig):
        settings = settings.model_dump(exclude_unset=True)
    if keys and settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"sstoken: {settings!r} is not a block of settings; give a mapping such as {{'ratio': 0.6}}.")
    config = SSTokenConfig.from_block({**(settings or {}), **keys} if keys else settings)
    bridge = bridge_of(trainer)
    bridge.refuse(trainer, config)
    kind, callbacks = type(trainer), list(trainer.callback_handler.callbacks)
    try:
        start(trainer, config, bridge.run_of(trainer, config), bridge.front)
    except Exception:
        # As it was, so that it can be tried again.
        trainer.__class__ = kind
        vars(trainer).pop("sstoken", None)
        trainer.callback_handler.callbacks[:] = callbacks
        raise
    return trainer


def start(trainer: Trainer, config: SSTokenConfig, run: Run, front: type | None = None) -> Session:
    """Give a trainer its selection, its trackers the settings and, if these ask for it, the page that shows it.

    Args:
        trainer: the trainer, before `train()`.
        config: the settings.
        run: what the run is to the selection.
        front: see `Bridge`.
    """
    session = select_tokens(trainer, config, run, front)
    trackers = Trackers(trainer, config.model_dump(mode="json"))
    trainer.add_callback(trackers)
    if config.report:
        watch(trainer, run, trackers)
    return session
