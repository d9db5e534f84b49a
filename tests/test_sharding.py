"""FSDP2 and ZeRO-3 over two real ranks: a sharded model selects and learns what the same model does under DDP."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from material import run_command

WAYS = ("full", "lora")
KINDS = ("initial", "ema", "snapshot", "full checkpoint", "adapter", "cached", "attention")
# DeepSpeed is an extra of Axolotl that builds for minutes: scripts/test_deepspeed.sh installs it and runs this file.
ENGINES = ("fsdp", "zero3") if find_spec("deepspeed") else ("fsdp",)
RUNS = [
    (way, kind, engine)
    for way in WAYS
    for kind in KINDS
    for engine in ENGINES
    if engine == "fsdp" or kind not in ("full checkpoint", "adapter", "cached")
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw, by way, history and engine."""
    out = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parent / "sharded_ranks.py"
    run_command("torchrun", "--standalone", "--nproc_per_node", "2", str(script), str(out), *ENGINES)
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("way", "kind", "engine"), RUNS)
def test_a_sharded_model_selects_and_learns_as_a_whole_one(ranks, way, kind, engine):
    for seen in ranks:
        whole, sharded = seen[f"{way}, {kind}, ddp"], seen[f"{way}, {kind}, {engine}"]
        for signal in ("loss", "rel", "attention"):
            for expected, found in zip(whole[signal], sharded[signal], strict=True):
                if expected is None:
                    assert found is None
                else:
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(whole["kept"], sharded["kept"], strict=True))
        assert whole["hits"] == sharded["hits"]
        assert whole["weights"].keys() == sharded["weights"].keys()
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(sharded["weights"][name], weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["ema", "snapshot"])
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_holds_whole_tensors_and_each_rank_takes_its_part(ranks, way, kind, engine):
    # Rank 0 writes it; under DeepSpeed only rank 0 has anything.
    for seen in ranks[: 1 if engine == "zero3" else None]:
        whole, sharded = seen[f"{way}, {kind}, ddp"], seen[f"{way}, {kind}, {engine}"]
        assert whole["tensors"].keys() == sharded["tensors"].keys() != set()
        for name, tensor in whole["tensors"].items():
            torch.testing.assert_close(sharded["tensors"][name], tensor, atol=1e-5, rtol=1e-5)
            assert torch.equal(sharded["restored"][name], sharded["tensors"][name] + 1)


def test_the_first_weights_have_the_same_digest_sharded_or_not(ranks):
    digests = {seen[f"full, initial, {engine}"]["digest"] for seen in ranks for engine in ("ddp", "fsdp")}
    assert len(digests) == 1
    assert None not in digests


@pytest.mark.parametrize("kind", ["initial", "ema", "full checkpoint", "adapter"])
def test_ranks_share_the_memory_of_a_history(ranks, kind):
    """No rank holds more than its half, and a little where a tensor can't be halved."""
    whole = ranks[0][f"full, {kind}, ddp"]["memory"]
    parts = [seen[f"full, {kind}, fsdp"]["memory"] for seen in ranks]
    assert sum(parts) == whole
    assert max(parts) < 0.55 * whole


def test_ranks_that_find_other_losses_in_the_cache_go_on_together(ranks):
    hits = [seen["lora, cached, fsdp"]["hits"] for seen in ranks]
    assert hits == [[2, 0, 2, 0, 2, 0], [0, 0, 0, 0, 0, 0]]


def test_a_rank_without_a_response_token_adds_nothing_and_keeps_in_step(ranks):
    for way in WAYS:
        for engine in ("ddp", *ENGINES):
            one, other = (seen[f"{way}, initial, {engine}"] for seen in ranks)
            assert other["loss"][2] == 0
            assert not other["kept"][2].any()
            assert all(torch.equal(weight, other["weights"][name]) for name, weight in one["weights"].items())
