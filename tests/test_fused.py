"""Fused kernels that a user has switched on give the losses of single tokens."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import cut_cross_entropy
import pytest
import torch
from torch.nn import functional

from sstoken_plugin.axolotl.run import KERNELS

LIGER = "liger_fused_linear_cross_entropy"


def check(key: str, dtype: torch.dtype, room: float, *, trained: bool) -> None:
    """Compare losses, and gradients from some of them, with the ordinary ones."""
    torch.manual_seed(0)
    hidden = torch.randn(11, 32, dtype=dtype, requires_grad=True)
    weight = torch.randn(64, 32, dtype=dtype, requires_grad=trained)
    target = torch.randint(64, (11,))
    counts = torch.arange(11) % 3 / 7
    leaves = (hidden, weight) if trained else (hidden,)
    results = []
    for losses in (
        KERNELS[key],
        lambda *given: functional.cross_entropy(functional.linear(*given[:3]).float(), given[3], reduction="none"),
    ):
        nll = losses(hidden, weight, None, target)
        assert nll.dtype == torch.float32
        results.append([nll.detach(), *torch.autograd.grad((nll * counts).sum(), leaves)])
    torch.testing.assert_close(*results, rtol=room, atol=room)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_cut_cross_entropy(monkeypatch, trained):
    # Its Triton kernels need a GPU; this is its own implementation for other machines.
    monkeypatch.setattr(
        cut_cross_entropy,
        "linear_cross_entropy",
        functools.partial(cut_cross_entropy.linear_cross_entropy, impl="torch_compile"),
    )
    check("cut_cross_entropy", torch.bfloat16, 2e-2, trained=trained)


def test_liger_under_a_frozen_head():
    """Triton's interpreter runs liger's kernels, and must be asked for before they are imported."""
    subprocess.run(
        [sys.executable, "-c", "import torch, test_fused as t; t.check(t.LIGER, torch.float32, 1e-5, trained=False)"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent,
        check=True,
        timeout=300,
    )
