"""What makes the program wait for the device within a step, which on a GPU costs what could have run meanwhile."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sstoken_plugin
from sstoken_plugin.engine.step import ScoredStep
from sstoken_plugin.training.session import Session

# Whose result's size, or result, the program must know.
WAITING = {"nonzero", "_local_scalar_dense", "unique_consecutive", "_unique2", "masked_select", "equal", "bincount"}
OURS = str(Path(sstoken_plugin.__file__).parent)


class Waits(TorchDispatchMode):
    """Notes the lines of the plugin whose operations wait."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_mask = any(isinstance(mask, torch.Tensor) and mask.dtype == torch.bool for mask in masks)
        if name in WAITING or by_mask:
            frame = next(f for f in reversed(traceback.extract_stack()[:-1]) if "site-packages" not in f.filename)
            if frame.filename.startswith(OURS):
                self.lines.append(f"{Path(frame.filename).name}: {frame.line}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("block", [{}, {"selector": "random"}, {"history_cache": True}], ids=["rel", "random", "cache"])
def test_from_the_models_pass_on_a_step_waits_for_nothing(config, train, monkeypatch, tmp_path, block):
    """But for the first batch, which is checked."""
    found = []

    def watched(method):
        def run(*args, **options):
            with Waits() as waits:
                result = method(*args, **options)
            found.append(waits.lines)
            return result

        return run

    monkeypatch.setattr(ScoredStep, "loss", watched(ScoredStep.loss))
    monkeypatch.setattr(Session, "take", watched(Session.take))
    if "history_cache" in block:
        block = {"history_cache": str(tmp_path / "cache")}
    train({**config, "sstoken": {"warmup_ratio": 0.0, **block}})
    assert len(found) > 8
    assert not [line for lines in found[2:] for line in lines]
