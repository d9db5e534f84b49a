"""Where a run keeps the losses of its history: `sstoken.history_cache`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sstoken_plugin.base.files import expand
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.sharding import any_rank, is_partitioned
from sstoken_plugin.history.store import FILE
from sstoken_plugin.selection.config import SSTokenConfig


def cache_folder(config: SSTokenConfig, run: Run, trainer: Any) -> Path | None:
    """Return the folder that a training keeps losses in; None if it keeps none. Every rank must call this.

    A folder of the run's own serves where losses are wanted again: in a later epoch, after a resume, or because
    `sstoken-score` has computed them.

    Args:
        config: the settings.
        run: the facts of the run.
        trainer: the trainer, before its first step.
    """
    if config.cache_folder is not None:
        return expand(config.cache_folder)
    if not config.may_keep_losses or not run.can_keep_losses or is_partitioned(trainer.model):
        return None
    folder = own_folder(trainer.args.output_dir)
    is_there = any_rank((folder / FILE).exists(), trainer.args.device)
    return folder if is_there or _has_several_epochs(run, trainer) else None


def planned_folder(config: SSTokenConfig, run: Run, output_dir: str | Path, epochs: float) -> Path | None:
    """Return the folder that a training of so many epochs will keep losses in, where there is no trainer yet."""
    if config.cache_folder is not None:
        return expand(config.cache_folder)
    folder = own_folder(output_dir)
    may_keep = config.may_keep_losses and run.can_keep_losses
    return folder if may_keep and (epochs > 1 or (folder / FILE).exists()) else None


def own_folder(output_dir: str | Path) -> Path:
    """Return the folder in which a run keeps losses where no other is named."""
    return Path(output_dir) / "sstoken" / "history"


def _has_several_epochs(run: Run, trainer: Any) -> bool:
    args, samples = trainer.args, trainer.train_dataset
    if args.max_steps <= 0:
        return bool(args.num_train_epochs > 1)
    batches = trainer.sstoken.batches
    if batches is None:
        if run.packs or not hasattr(samples, "__len__"):
            # How many samples a batch takes is not known yet; losses that nobody asks for again cost little.
            return True
        batches = math.ceil(len(samples) / (args.train_batch_size * args.world_size))
    return bool(args.max_steps > math.ceil(batches / args.gradient_accumulation_steps))
