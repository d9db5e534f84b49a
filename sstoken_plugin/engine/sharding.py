"""Weights that ranks share out among them, each rank a part of every tensor: FSDP2, and DeepSpeed's ZeRO-3."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Tell whether every rank must run each forward pass of this model, because each holds a part of its weights."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or is_partitioned(model)


def is_partitioned(model: nn.Module) -> bool:
    """Tell whether DeepSpeed shards the model's weights (ZeRO stage 3)."""
    return any(_is_partitioned(parameter) for parameter in model.parameters())


def device_of(model: nn.Module) -> torch.device:
    """Return the device on which a model runs; sharded weights may rest on another."""
    tensor = next(model.parameters())
    return torch.device(tensor.device_mesh.device_type) if isinstance(tensor, DTensor) else tensor.device


def parts(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield what this rank answers for of some parameters: all of it, its part, or, beside rank 0 of ZeRO-3, nothing.

    What the caller writes into a tensor before it takes the next one is written into the model. Every rank must
    exhaust this, in the same order.

    Args:
        model: the model, sharded or not.
        names: of parameters.
    """
    parameters = _sharded_parameters(model)
    for name in names:
        parameter = parameters[name]
        if _is_partitioned(parameter):
            # DeepSpeed's documented way: rank 0 changes the gathered tensor, and all ranks take over their parts.
            with sys.modules["deepspeed"].zero.GatheredParameters([parameter], modifier_rank=0):
                if dist.get_rank() == 0:
                    yield name, parameter.detach()
        else:
            yield name, (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


def wholes(model: nn.Module, held: dict[str, Tensor], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield whole tensors, put together from what `parts` gave on each rank; beside rank 0 of ZeRO-3, nothing.

    Args:
        model: the model.
        held: what this rank holds of each parameter, or of a tensor like it, on any device.
        names: of parameters.
    """
    parameters = _sharded_parameters(model)
    for name in names:
        like = parameters[name]
        if isinstance(like, DTensor):
            yield name, whole(like, held[name])
        elif name in held:
            yield name, held[name]


def whole(like: Tensor, held: Tensor | None = None) -> Tensor:
    """Put together a tensor that FSDP2 shards; return another as it is. Every rank must call this.

    Args:
        like: the tensor.
        held: this rank's part of a tensor like it; None for that of the tensor itself.
    """
    if not isinstance(like, DTensor):
        return like if held is None else held
    own = like.to_local() if held is None else held.to(like.device)
    sharded = DTensor.from_local(own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    gathered: Tensor = sharded.full_tensor()
    return gathered


def part_of(value: Tensor, model: nn.Module, name: str) -> Tensor:
    """Return this rank's part of a whole tensor, split as a parameter is."""
    like = _sharded_parameters(model)[name]
    if not isinstance(like, DTensor):
        return value
    # Every rank has the whole, so that nothing needs to be sent.
    replicated = DTensor.from_local(value.to(like.device), like.device_mesh, run_check=False)
    part: Tensor = replicated.redistribute(placements=like.placements).to_local()
    return part


def shape_of(model: nn.Module, name: str) -> torch.Size:
    """Return the shape of a whole parameter."""
    parameter: Any = _sharded_parameters(model)[name]
    shape: torch.Size = parameter.ds_shape if _is_partitioned(parameter) else parameter.shape
    return shape


def size_of(tensor: Any) -> int:
    """Return the bytes that this rank holds of a tensor."""
    local = held_part(tensor)
    return int(local.numel() * local.element_size())


def held_part(tensor: Any) -> Tensor:
    """Return what this rank holds of a tensor, without asking the others."""
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else getattr(tensor, "ds_tensor", tensor)
    return held


def drop_gathered(model: nn.Module) -> None:
    """Drop whole weights that a forward pass has left behind, so that the next one sees changed parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_like(model: nn.Module, other: nn.Module) -> None:
    """Shard a frozen model at the modules at which FSDP2 shards another, over the same ranks.

    Args:
        model: a model of the same architecture, with or without an adapter, whole on every rank.
        other: the sharded model.
    """
    mesh: Any = next(tensor.device_mesh for tensor in other.parameters() if isinstance(tensor, DTensor))
    places = {plain_name(name) for name, module in other.named_modules() if isinstance(module, FSDPModule)}
    for name, module in reversed(list(model.named_modules())):
        # A root would keep its weights, the embeddings and the output head, gathered after a pass.
        if module is model or plain_name(name) in places:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Tell whether `flag` is set on any rank; every rank must call this. A process alone is the only one."""
    if not dist.is_initialized():
        return flag
    mark = torch.tensor(int(flag), device=device)
    dist.all_reduce(mark, dist.ReduceOp.MAX)
    return bool(mark)


def plain_name(name: str) -> str:
    """Return the name that a module or parameter has in the model without PEFT's wrapping."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def _is_partitioned(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id")


def _sharded_parameters(model: nn.Module) -> dict[str, Tensor]:
    # A pass may have left others, which are whole, in the place of sharded ones.
    drop_gathered(model)
    return dict(model.named_parameters())
