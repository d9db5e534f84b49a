"""What an operation costs, counted instead of timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def products_over(vocabulary: int) -> Iterator[list[int]]:
    """Collect the rows of every matrix product that has the vocabulary in one of its dimensions."""
    rows: list[int] = []
    aten = torch.ops.aten
    products = (aten.mm.default, aten.mm.out, aten.addmm.default, aten.addmm.out, aten.addmm_.default)

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in products:
                one, other = args[-2:]
                # A gradient of the weights sums over rows: [V, n] @ [n, D].
                shape = (*one.shape, other.shape[1])
                if vocabulary in shape:
                    rows.append(shape[1] if shape[0] == vocabulary else shape[0])
            return func(*args, **(kwargs or {}))

    with Counter():
        yield rows


@contextmanager
def tensor_sizes() -> Iterator[list[int]]:
    """Collect the number of elements of every tensor that an operator returns."""
    sizes: list[int] = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            return result

    with Counter():
        yield sizes
