"""Makes a trainer train on selected tokens."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from sstoken_plugin.base.logs import announce, announce_as, logger
from sstoken_plugin.base.visible_text import told_on_one_line
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.step import TokenSelection
from sstoken_plugin.history.build import build_history
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.training import checkpoint
from sstoken_plugin.training.cache import cache_folder
from sstoken_plugin.training.callbacks import HistoryCallback
from sstoken_plugin.training.collated import makes_other_samples
from sstoken_plugin.training.parts import HistoryPart
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
        session.reads_collated = run.takes_any_collator and session.any_rank(makes_other_samples(trainer))
        tokenizer, samples = session.tokenizer, session.samples
        look = look_at_data(samples, run, model, tokenizer)
        session.survey = look.survey
        cache = cache_folder(config, run, trainer)
        history = build_history(
            config,
            run,
            model,
            tokenizer,
            adapter_is_trained=_adapter_is_of_checkpoint(trainer),
            samples=samples or (),
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


def _adapter_is_of_checkpoint(trainer: Any) -> bool:
    """Tell whether an adapter that has an effect already got it in the run that is resumed; every rank must call this.

    A run whose adapter had one when it began keeps a copy of it in its checkpoints. Others began with a new adapter,
    whatever was loaded since: ms-swift, and many a script, make the model with the adapter of the checkpoint.
    """
    folder = trainer.resumes_from
    return folder is not None and not trainer.sstoken.any_rank(checkpoint.holds_tensors(folder, HistoryPart.name))


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
