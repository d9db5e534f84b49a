"""Makes a trainer train on selected tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer

from sstoken_plugin.base.logs import announce, announce_as, logger
from sstoken_plugin.base.visible_text import told_on_one_line
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.sharding import is_sharded
from sstoken_plugin.engine.step import TokenSelection
from sstoken_plugin.history.adapter import has_adapter_of
from sstoken_plugin.history.build import build_history
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.training import checkpoint
from sstoken_plugin.training.cache import cache_folder
from sstoken_plugin.training.callbacks import HistoryCallback
from sstoken_plugin.training.parts import HistoryPart, Saved
from sstoken_plugin.training.plan import PlanCallback
from sstoken_plugin.training.session import Session
from sstoken_plugin.training.setup import build_selection, describe, look_at_data, refuse_spread
from sstoken_plugin.training.trainer import TokenSelectionTrainer

LOG = logger(__name__)


def select_tokens(trainer: Any, config: SSTokenConfig, run: Run, front: type | None = None) -> Session:
    """Make a trainer compute its training loss on selected tokens; it is not trained yet.

    Args:
        trainer: a Trainer of transformers, or of a class derived from it. It becomes one of a class of its own.
        config: the settings.
        run: what the run is to the selection.
        front: see `Bridge`.

    Returns:
        The selection, which is `trainer.sstoken` from now on.
    """
    for sentence in config.keys_without_effect():
        LOG.warning(sentence)
    if not isinstance(trainer, TokenSelectionTrainer):
        trainer.__class__ = with_selection(type(trainer), front)

    @told_on_one_line()
    def make_selection() -> TokenSelection:
        model, precision = trainer.model, trainer.accelerator.autocast
        refuse_spread(model)
        tokenizer, samples = session.tokenizer, session.samples
        look = look_at_data(samples, run, model, tokenizer)
        session.survey = look.survey
        cache = cache_folder(config, run, trainer)
        history = build_history(
            config,
            run,
            model,
            tokenizer,
            adapter_is_trained=_adapter_is_of_checkpoint(trainer, config.history),
            # Where batches may hold others, a cache that has all of these may lack what comes.
            samples=(samples or ()) if run.rows_are_final else (),
            cache=cache,
            precision=precision,
        )
        with precision():
            selection = build_selection(config, run, model, history, look)
        if session.is_first_rank:
            announce(describe(selection, tokenizer))
        return selection

    announce_as(run.names.announcer)
    session = Session(trainer, config, make_selection, run.names)
    trainer.sstoken = session
    trainer.add_callback(HistoryCallback(trainer))
    trainer.add_callback(PlanCallback(trainer))
    return session


def _adapter_is_of_checkpoint(trainer: Any, history: str) -> bool:
    """Tell whether the model has the adapter of the checkpoint that the run resumes from, and began with a new one.

    So do ms-swift, and many a script, make the model of a run that goes on. Every rank must call this.

    Args:
        trainer: the trainer.
        history: the value of `sstoken.history`.
    """
    folder, model = trainer.resumes_from, trainer.model
    if folder is None or not isinstance(model, PeftModel):
        return False
    # Of a sharded one no rank has all; no trainer that loads another adapter there is known.
    is_its = is_sharded(model) or has_adapter_of(model, folder)
    # A run that began with a trained adapter keeps a copy of it.
    return not trainer.sstoken.any_rank(not is_its or _holds_history(folder, history))


def _holds_history(folder: Path, kind: str) -> bool:
    """Tell whether a checkpoint holds weights of a history of this kind, be they damaged."""
    try:
        found = checkpoint.read(folder, {HistoryPart.name})
    except ValueError:
        return False
    if found is None:
        return False
    saved = found.parts.get(HistoryPart.name, Saved())
    is_of_kind = isinstance(saved.facts, Mapping) and saved.facts.get("kind") == kind
    return HistoryPart.name in found.lost or bool(saved.tensors and is_of_kind)


def with_selection(kind: type[Trainer], front: type | None = None) -> type[Trainer]:
    """Return a class of trainers whose training loss comes from the selection: what comes before stays before.

    Args:
        kind: the class of the trainer.
        front: see `Bridge`.
    """
    bases: list[type] = [] if front is None else [front]
    # A class cannot stand before one of its own bases.
    bases += [TokenSelectionTrainer] if kind is Trainer else [kind, TokenSelectionTrainer]
    return type(f"SSToken{kind.__name__}", tuple(bases), {"__module__": kind.__module__})
