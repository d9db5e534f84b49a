"""Weights that ranks share out among them: FSDP2, where each rank holds a part of every tensor."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Tell whether every rank must run each forward pass of this model, because each holds a part of its weights."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """Return the device on which a model runs; sharded weights may rest on another."""
    tensor = next(model.parameters())
    return torch.device(tensor.device_mesh.device_type) if isinstance(tensor, DTensor) else tensor.device


def part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, as a view; a tensor that is not sharded is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(held: Tensor, like: Tensor) -> Tensor:
    """Put the parts of all ranks together. Every rank must call this, in the same order.

    Args:
        held: what this rank holds, as from `part`, on any device.
        like: the tensor whose parts they are.
    """
    if not isinstance(like, DTensor):
        return held
    own = held.to(like.device)
    sharded = DTensor.from_local(own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    gathered: Tensor = sharded.full_tensor()
    return gathered


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, split as `like` is."""
    if not isinstance(like, DTensor):
        return value
    # Every rank has the whole, so that nothing needs to be sent.
    return part(
        DTensor.from_local(value.to(like.device), like.device_mesh, run_check=False).redistribute(
            placements=like.placements
        )
    )


def drop_gathered(model: nn.Module) -> None:
    """Drop whole weights that a forward pass has left behind, so that the next one sees changed parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def sharded_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name; a pass may have left others, which are whole, in the place of sharded ones."""
    drop_gathered(model)
    return dict(model.named_parameters())


def shard_like(model: nn.Module, other: nn.Module) -> None:
    """Shard a frozen model at the modules at which another is sharded, over the same ranks.

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
    """Tell whether `flag` is set on any rank. Every rank must call this."""
    mark = torch.tensor(int(flag), device=device)
    dist.all_reduce(mark, dist.ReduceOp.MAX)
    return bool(mark)


def plain_name(name: str) -> str:
    """Return the name that a module or parameter has in the model without PEFT's wrapping."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
