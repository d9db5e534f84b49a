"""Looking at a model without changing it: forward passes that leave no trace."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sstoken_plugin.engine.sharding import device_of, drop_gathered, is_sharded


def under_adapter(model: Any) -> Any:
    """Return the model of transformers that a PEFT model is made of, or the model itself if it has no adapter."""
    # Asked of the model, so that none of this needs PEFT.
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()


def class_name(model: Any) -> str:
    """Return the name by which a user knows the model, whatever adapter it has."""
    return type(under_adapter(model)).__name__


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object or a class another attribute inside the block; what it had of its own before is back after it."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Run forward passes in evaluation mode, without gradient, and restore modes and random states after.

    Evaluation mode switches off dropout and gradient checkpointing. Sharded weights are sharded again after the block.
    """
    modes = [(module, module.training) for module in model.modules()]
    versions = _versions(model)
    bitsandbytes = sys.modules.get("bitsandbytes")
    try:
        model.eval()
        if bitsandbytes is not None:
            # On a CPU with AVX512-BF16 a 4-bit layer repacks its weights for inference in an evaluation-mode
            # forward and passes no gradient from then on (bitsandbytes 0.50, nn/modules.py). It has no dropout.
            for module, _ in modes:
                if isinstance(module, bitsandbytes.nn.Linear4bit):
                    module.training = True
        # Some draw random numbers all the same.
        with torch.no_grad(), random_state_kept():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        drop_gathered(model)
        # Where weights are sharded, putting them together and apart counts as writing.
        if not is_sharded(model) and _versions(model) != versions:
            _settle(model)


def _versions(model: nn.Module) -> list[int]:
    """Return how often each parameter was written to in place."""
    return [0 if parameter.is_inference() else parameter._version for parameter in model.parameters()]


def _settle(model: nn.Module) -> None:
    """Let a model that writes to its weights when its mode changes, as RWKV does, write back what it wrote."""
    tokens = trial_tokens(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
        model(input_ids=tokens, use_cache=False)


def trial_tokens(model: Any, length: int = 8) -> Tensor:
    """Return tokens for a trial forward pass, int64 [1, length], or less if a model takes less, on its device."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    # Half, because some count positions from another place than 0.
    length = min(length, max(most // 2, 1)) if isinstance(most, int) and most > 0 else length
    tokens: Tensor = torch.arange(length, device=device_of(model))[None] % config.vocab_size
    return tokens


def random_states() -> list[Any]:
    """Return the states of the random generators, to be compared; on a GPU that of this process."""
    numpy = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
    gpu = [torch.cuda.get_rng_state().tolist()] if torch.cuda.is_initialized() else []
    return [random.getstate(), numpy, torch.get_rng_state().tolist(), *gpu]


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give every random generator the state that it had before the block, on a GPU that of this process."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
