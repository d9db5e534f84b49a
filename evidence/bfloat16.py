"""Matrix products in bfloat16 on a CPU that has no instructions for them.

PyTorch has loops for such a CPU that are 4 to 40 times slower than float32. What an instruction does can be had from
float32 too: products of two bfloat16 numbers are exact in it, sums are taken in it, and the result is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mm.out", "addmm.out")


@cache
def by_float32() -> torch.library.Library:
    """Have products of bfloat16 matrices on the CPU computed in float32, in this process, for as long as it runs.

    Attention is computed by such products too: going backwards, its own kernel is four times slower.

    Returns:
        What holds the products; PyTorch's own are back once it is gone.
    """
    kernels = torch.library.Library("aten", "IMPL")
    for name in _PRODUCTS:
        kernels.impl(name, _widened(torch.library.get_kernel(f"aten::{name}", "CPU")), "CPU", with_keyset=True)
    # Of a GPU or not, this is its switch.
    torch.backends.cuda.enable_flash_sdp(False)
    return kernels


def is_fast() -> bool:
    """Tell whether this CPU multiplies matrices in bfloat16 as fast as in float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _widened(kernel: Any) -> Callable[..., Any]:
    def product(keys: Any, *arguments: Any, **others: Any) -> Any:
        if arguments[0].dtype != torch.bfloat16:
            return kernel.call_boxed(keys, *arguments, **others)
        wide = [value.float() if isinstance(value, torch.Tensor) else value for value in arguments]
        if "out" not in others:
            return kernel.call_boxed(keys, *wide, **others).bfloat16()
        exact = torch.empty_like(others["out"], dtype=torch.float32)
        kernel.call_boxed(keys, *wide, **others | {"out": exact})
        return others["out"].copy_(exact)

    return product
