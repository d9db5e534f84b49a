"""Chooses the history for a loaded model: the one that needs the least memory and serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from sstoken_plugin.base.files import expand
from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.engine.modes import class_name, trial_tokens
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.sharding import any_rank, is_partitioned, is_sharded
from sstoken_plugin.engine.visibility import refuse_encoder_decoder
from sstoken_plugin.history.adapter import AdapterOff
from sstoken_plugin.history.base import History, Untrained, bytes_of
from sstoken_plugin.history.blocks import KEY_BYTES
from sstoken_plugin.history.frozen import FrozenModel
from sstoken_plugin.history.given import load_given
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.history.store import LossStore
from sstoken_plugin.history.traces import traces_of
from sstoken_plugin.history.weights import KeptWeights, MovingAverage, Snapshot
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.rows import are_prepared, rows_of
from sstoken_plugin.selection.samples import IGNORE_INDEX, sample_keys

LOG = logger(__name__)

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter that was trained already, and what its checkpoint says of the history of its run.

    Attributes:
        folder: where it comes from.
        history: the value of `sstoken.history` in that run; None if it is not known.
        tensors: the history's weights, by parameter name; empty where there are none.
        reason: why the weights could not be read; "" if they could, or there are none.
    """

    folder: Path
    history: str | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    reason: str = ""


def build_history(
    config: SSTokenConfig,
    run: Run,
    model: Any,
    tokenizer: Any,
    *,
    trains: bool = True,
    trained: TrainedAdapter | None = None,
    adapter_is_trained: bool = False,
    samples: Sequence[Sample] = (),
    cache: Path | None = None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> HistoryLosses | None:
    """Return the history that the settings ask for; None if nothing ranks by it and it would cost memory.

    Args:
        config: the settings.
        run: the facts of the run.
        model: the unwrapped model. It is not changed.
        tokenizer: its tokenizer.
        trains: whether the model will be trained, so that the past must be kept.
        trained: the trained adapter that the model has, as for inspection; None if the model is at its start.
        adapter_is_trained: whether what effect the model's adapter has is training that began without any, so that the
            model without it is the first one; always so with `trained`.
        samples: rows of the data set; where the cache holds the losses of all, no model is kept.
        cache: folder that losses are kept in, the user's or the run's own, see `training.cache`; None to keep none.
        precision: makes the context in which the model runs, such as an autocast.

    Raises:
        ValueError: the model does not allow it; one sentence with key and fix.
    """
    # Its decoder would fail at the first pass, in words of its own.
    refuse_encoder_decoder(model, run.names)
    devices = [model.device] if model.device.type == "cuda" else []
    # Loading draws random numbers: training must draw the same as without.
    with torch.random.fork_rng(devices=devices), precision():
        is_trained = adapter_is_trained or trained is not None
        history = _before_training(config, run, model, tokenizer, trained, is_trained=is_trained)
    if history is None:
        return None
    store = None
    if cache is not None:
        with precision():
            mark = history.fingerprint(model)
        store = _store(cache, mark, model, is_asked_for=config.cache_folder is not None or not trains)
    # A copy that goes into checkpoints is small, and there for a resume that does not find the cache.
    is_dear = isinstance(history, FrozenModel) or (isinstance(history, Untrained) and not _goes_into_checkpoints(model))
    if store is not None and trains and is_dear and _all_there(store, samples, model):
        return HistoryLosses(None, store)
    if isinstance(history, FrozenModel) and history.is_movable:
        device = _place(config, model, history.memory)
        history.place(model, stream=device != model.device)
    elif trains and isinstance(history, Untrained):
        history = _kept(config, model)
    with precision():
        _refuse_traces(config, history, model)
    return HistoryLosses(history, store, precision, together=is_sharded(model))


def memory_in_training(history: History, model: Any) -> int:
    """Return the bytes that a history takes in training, where it was built for a model that does not train, too."""
    if isinstance(history, Untrained):
        return bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    return history.memory


def _store(folder: Path, mark: bytes, model: Any, *, is_asked_for: bool) -> LossStore | None:
    """Open the cache; one that nobody asked for is left out where it cannot be, by every rank alike."""
    store, fault = None, "another rank cannot use it"
    try:
        store = LossStore(folder, mark)
    except ValueError as error:
        if is_asked_for:
            raise
        fault = in_short(error)
    if not is_asked_for and any_rank(store is None, trial_tokens(model).device):
        LOG.warning("ssToken: the history's losses are not kept from epoch to epoch: %s", fault)
        return None
    return store


def _refuse_traces(config: SSTokenConfig, history: History, model: Any) -> None:
    try:
        changed = traces_of(history, model)
    except Exception as error:
        if not config.history_is_path:
            raise
        raise ValueError(
            f"sstoken.history: {config.history}: a forward pass of it fails ({in_short(error)}); name a complete "
            "adapter folder or checkpoint."
        ) from error
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(
            f"sstoken.history: {config.history}: a pass of the history leaves {changed[0]}{more} of "
            f"{class_name(model)} changed, so that it would train something else; set sstoken.selector: attention, "
            "which needs no history."
        )


def _before_training(
    config: SSTokenConfig,
    run: Run,
    model: Any,
    tokenizer: Any,
    trained: TrainedAdapter | None,
    *,
    is_trained: bool,
) -> History | None:
    """Return the history as it is before the first step, without a copy of anything."""
    plain = run.starts_from is None and run.plain_init
    if config.history == "initial" and plain and AdapterOff.serves(model, adapter_is_trained=is_trained):
        return AdapterOff()
    if not config.needs_history:
        return None
    if config.history_is_path:
        return load_given(expand(config.history), run, model, tokenizer, is_trained=is_trained)
    if trained is None:
        return Untrained()
    if trained.tensors and trained.history == config.history:
        kept = KeptWeights(model, f"the history ({config.history}) that {trained.folder} holds")
        kept.restore(trained.tensors, model)
        return kept
    if config.history == "initial" and run.starts_from is not None:
        return load_given(run.starts_from, run, model, tokenizer, is_trained=True)
    reason = f" ({trained.reason})" if trained.reason else ""
    raise ValueError(
        f"sstoken.history: {config.history} cannot be told from {trained.folder}{reason}; name a checkpoint folder "
        "that was written by a run with this setting."
    )


def _kept(config: SSTokenConfig, model: Any) -> KeptWeights:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = _place(config, model, bytes_of(trained))
    if config.history == "ema":
        return MovingAverage(model, config.history_ema_decay, device=device)
    if config.history == "snapshot":
        return Snapshot(model, config.history_update_steps, device=device)
    if config.history != "initial":
        raise NotImplementedError(config.history)
    what, in_checkpoints = "the weights before training (a copy)", _goes_into_checkpoints(model)
    return KeptWeights(model, what, device=device, in_checkpoints=in_checkpoints)


def _goes_into_checkpoints(model: Any) -> bool:
    """Tell whether a copy of the first weights is saved with each checkpoint."""
    # Those of a full fine-tuning are on disk already, as the base model; but DeepSpeed loads those of a checkpoint
    # before a run that resumes could copy them.
    return isinstance(model, PeftModel) or is_partitioned(model)


def _place(config: SSTokenConfig, model: Any, size: int) -> torch.device:
    """Return where a copy of `size` bytes shall live."""
    if config.history_device == "cpu":
        return torch.device("cpu")
    if config.history_device == "auto" and model.device.type == "cuda":
        # Gradients and two moments of the optimizer are still to come, and the batch must find room too.
        to_come = 3 * bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)
        if size + to_come > torch.cuda.mem_get_info(model.device)[0] / 2:
            return torch.device("cpu")
    device: torch.device = model.device
    return device


def _all_there(store: LossStore, samples: Sequence[Sample], model: Any) -> bool:
    # On all ranks or on none: each may have a folder of its own, or meet one that is being filled.
    return not any_rank(_any_missing(store, samples), trial_tokens(model).device)


def _any_missing(store: LossStore, samples: Sequence[Sample]) -> bool:
    wanted: dict[bytes, int] = {}
    if not are_prepared(samples):
        return True
    for first, batch, _ in rows_of(samples):
        keys, lengths = sample_keys(batch, KEY_BYTES)
        if int((batch["labels"] != IGNORE_INDEX).sum()) != sum(lengths):
            # Of a sample's first token, or of padding, which may be trained on and is never kept: see HistoryLosses.of.
            return True
        wanted |= zip(keys, lengths, strict=True)
        # Most caches that lack a sample lack one of the first.
        if first == 0 and store.missing(wanted, wanted.values()):
            return True
    return not wanted or bool(store.missing(wanted, wanted.values()))
