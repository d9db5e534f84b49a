"""Histories that are models of their own, and never change: weights given by `sstoken.history: PATH`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import cpu_offload
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from sstoken_plugin.engine.modes import without_trace
from sstoken_plugin.engine.sharding import is_sharded, shard_like
from sstoken_plugin.history.adapter import is_of_base
from sstoken_plugin.history.base import History, bytes_of


class FrozenModel(History):
    """A second model beside the one in training.

    Args:
        model: the history model. It is frozen and put into evaluation mode.
        description: see `History`.
        shared_with: the model whose weights it shares, as from `with_shared_weights`; they cost no memory.
    """

    def __init__(self, model: nn.Module, description: str, *, shared_with: nn.Module | None = None):
        self.description = description
        shared = set() if shared_with is None else {id(tensor) for tensor in shared_with.parameters()}
        own = [tensor for tensor in model.parameters() if id(tensor) not in shared]
        for tensor in own:
            tensor.requires_grad_(False)
        self._shares = shared_with is not None
        self.memory = bytes_of(own)
        self.device = next(model.parameters()).device
        self.model: Any = model.eval()
        # Shared weights stay where the other model has them, and quantised ones where they were made.
        self.is_movable = shared_with is None and getattr(model, "quantization_method", None) is None

    def depends_on(self, name: str) -> bool:
        """Tell whether it shares a weight; those of the other model's adapter it does not."""
        return self._shares and is_of_base(name)

    def place(self, beside: nn.Module, *, stream: bool) -> None:
        """Make the model run where another does.

        Args:
            beside: the model in training; where that is sharded, so is this one then.
            stream: stay, and go to the device one layer at a time.
        """
        device = next(beside.parameters()).device
        if stream:
            cpu_offload(self.model, execution_device=device)
            return
        if is_sharded(beside):
            shard_like(self.model, beside)
            self.memory = bytes_of(self.model.parameters())
        else:
            self.model.to(device)
        self.device = device

    @contextmanager
    def active(self, model: Any) -> Iterator[Any]:
        """Give the frozen model; the one in training plays no part."""
        # It is in evaluation mode already, but 4-bit layers, which may be shared, must not be.
        with without_trace(self.model):
            yield self.model


def with_shared_weights(model: nn.Module) -> nn.Module:
    """Return a model with modules of its own and the same tensors: what is done to its modules stays there.

    Quantised weights are shared too, since all that a module refers to is.
    """
    twins = {module: module.__class__.__new__(module.__class__) for module in model.modules()}
    for module, twin in twins.items():
        twin.__dict__ = {
            # The registries (parameters, buffers, hooks) and settings that a tuner edits are the twin's own.
            name: _rebound(value.copy() if isinstance(value, (dict, list)) else value, twins)
            for name, value in vars(module).items()
            # Compiled in place, it would run the other model's modules.
            if name != "_compiled_call_impl"
        }
        twin._modules = {name: child if child is None else twins[child] for name, child in module._modules.items()}
    return twins[model]


def _rebound(value: Any, twins: dict[nn.Module, nn.Module]) -> Any:
    """A method that was patched onto a module, as fused kernels are, must run on the twin."""
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module) and value.__self__ in twins:
        return types.MethodType(value.__func__, twins[value.__self__])
    return value


def without_adapter(model: PeftModel) -> nn.Module:
    """Return the base of an adapted model as a model of its own that shares its weights."""
    twin: Any = with_shared_weights(model)
    for module in twin.modules():
        if isinstance(module, ModulesToSaveWrapper):
            # Unloading would leave the trained module in its place.
            module.modules_to_save[module.active_adapter] = module.original_module
    base: nn.Module = twin.base_model.unload()
    return base
