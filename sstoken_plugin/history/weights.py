"""Histories that are the model's own trained weights at other values: the first, the mean, the last copied ones.

One mechanism serves them all, with LoRA, every variant of it, modules trained beside it, and full fine-tuning:
what trains is kept a second time, and the two values of each tensor change places while the history runs.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sstoken_plugin.engine.sharding import part_of, parts, shape_of, wholes
from sstoken_plugin.history.base import History, bytes_of
from sstoken_plugin.history.fingerprint import digests


class KeptWeights(History):
    """The trained weights as they are when this is made; they stay so.

    Args:
        model: the unwrapped model. It is not changed. Where its weights are sharded, each rank keeps its own part.
        description: see `History`.
        device: where the second values live; None for beside the first.
        in_checkpoints: whether a checkpoint holds them, because a new run could not make them again.
    """

    def __init__(
        self, model: nn.Module, description: str, *, device: torch.device | None = None, in_checkpoints: bool = True
    ):
        self.description = description
        self._in_checkpoints = in_checkpoints
        self._digest: str | None = None
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._kept = {name: held.to(device or held.device, copy=True) for name, held in self._parts(model)}
        self.memory = bytes_of(self._kept.values())
        self.device = next((tensor.device for tensor in self._kept.values()), self.device)

    @contextmanager
    def active(self, model: Any) -> Iterator[Any]:
        """Exchange the values inside the block. It costs one more tensor at a time, none for good."""
        exchanged = set()
        with interrupts_deferred(), torch.no_grad():
            try:
                for name, held in self._parts(model):
                    _exchange(held, self._kept[name])
                    exchanged.add(name)
                yield model
            finally:
                for name, held in self._parts(model):
                    if name in exchanged:
                        _exchange(held, self._kept[name])

    def tensors(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the kept values by parameter name."""
        return wholes(model, self._kept, self._names) if self._in_checkpoints else iter(())

    def restore(self, tensors: dict[str, Tensor], model: Any) -> None:
        """Take over the values of a checkpoint.

        Raises:
            ValueError: they belong to other parameters than those that train, or are no finite numbers.
        """
        if not self._in_checkpoints:
            return
        if {name: tensor.shape for name, tensor in tensors.items()} != {
            name: shape_of(model, name) for name in self._names
        }:
            raise ValueError(
                "the checkpoint's history has other tensors than those that train now"
                if tensors
                else "there are no weights of it"
            )
        if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("the checkpoint's history has weights that are no finite numbers")
        for name, kept in self._kept.items():
            kept.copy_(part_of(tensors[name], model, name))

    def digest(self, model: Any) -> str | None:
        """Hash the kept values, where a checkpoint does not hold them."""
        if self._in_checkpoints:
            return None
        if self._digest is None:
            self._digest = hashlib.blake2b(
                b"".join(digests(wholes(model, self._kept, self._names))), digest_size=16
            ).hexdigest()
        return self._digest

    def restart(self, model: Any) -> None:
        """Copy the model's weights as they are now, if the history follows them at all."""
        if self.changes:
            self._copy(model)

    def _copy(self, model: Any) -> None:
        for name, held in self._parts(model):
            self._kept[name].copy_(held)

    def _parts(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        return parts(model, self._names)


class Snapshot(KeptWeights):
    """The trained weights as they were at the last of every `period` optimizer steps."""

    changes = True

    def __init__(self, model: nn.Module, period: int, *, device: torch.device | None = None):
        super().__init__(model, f"a snapshot of the trained weights, taken every {period} steps", device=device)
        self._period = period

    def after_step(self, model: Any, step: int) -> None:
        """Take the snapshot when it is due."""
        if step % self._period == 0:
            self._copy(model)


class MovingAverage(KeptWeights):
    """The exponential moving average of the trained weights: his <- decay * his + (1 - decay) * weights."""

    changes = True

    def __init__(self, model: nn.Module, decay: float, *, device: torch.device | None = None):
        super().__init__(model, f"the moving average of the trained weights (decay {decay:g})", device=device)
        self._decay = decay

    def after_step(self, model: Any, step: int) -> None:
        """Move every average towards the weights (arXiv 2510.18250, moving-average history)."""
        for place, (name, held) in enumerate(self._parts(model)):
            kept = self._kept[name]
            now = held.to(kept.device)
            if kept.dtype == torch.bfloat16:
                mean = torch.lerp(kept.float(), now.float(), 1 - self._decay)
                kept.copy_(round_by_chance(mean, seed=step * 1_000_003 + place))
            else:
                kept.lerp_(now, 1 - self._decay)


def round_by_chance(values: Tensor, seed: int) -> Tensor:
    """Round float32 to bfloat16, up or down by chance, so that the mean is kept.

    Rounding to the nearest would lose every step of an average that is smaller than half a unit in the last
    place, and the average would stand still.

    Args:
        values: float32, any shape.
        seed: of a generator of its own, so that a run can be repeated and torch's random state is not touched.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(1 << 16, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    bits = (values.contiguous().view(torch.int32) + noise) & ~0xFFFF
    return bits.view(torch.float32).to(torch.bfloat16)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends: Axolotl answers it by saving the model as it is at that moment."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if arrived:
            signal.raise_signal(signal.SIGINT)


def _exchange(one: Tensor, other: Tensor) -> None:
    held = one.detach().clone()
    one.copy_(other)
    other.copy_(held)
