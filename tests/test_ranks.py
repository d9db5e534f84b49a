"""Several ranks (DDP over gloo) on real Axolotl runs: the split into ranks and accumulation changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from material import run_command

# Ranks; accumulation makes up for the rest of four micro-batches an optimizer step.
WORLDS = (1, 2, 4)
STEPS = 3


@pytest.fixture(scope="module")
def ranks(small_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank saw, by number of ranks."""
    out = tmp_path_factory.mktemp("ranks")
    config = {
        **small_run,
        "plugins": ["sstoken", "cpu_plugin.OnCpu"],
        "sstoken": {"ratio": 0.5, "warmup_ratio": 0.3},
        "micro_batch_size": 1,
        "max_steps": None,
        "num_epochs": 1,
        # Three optimizer steps: the last one has two micro-batches for four places.
        "datasets": [{**small_run["datasets"][0], "split": "train[:10]"}],
    }
    file = out / "config.json"
    file.write_text(json.dumps(config))
    script = Path(__file__).parent / "axolotl_ranks.py"
    found = {}
    for world in WORLDS:
        run_command(
            "torchrun", "--standalone", "--nproc_per_node", str(world), str(script), str(file), str(out),
            ACCELERATE_USE_CPU="true",
        )  # fmt: skip
        found[world] = [torch.load(out / f"{world}-rank-{rank}.pt") for rank in range(world)]
    return found


@pytest.mark.parametrize("counted", [False, True], ids=["mean of micro-batches", "num_items_in_batch"])
@pytest.mark.parametrize("world", WORLDS)
def test_losses_and_weights_are_those_of_plain_axolotl_on_the_kept_tokens(ranks, world, counted):
    for seen in ranks[world]:
        ours, plain = seen[f"ours, {counted}"], seen[f"plain, {counted}"]
        assert len(ours["losses"]) == STEPS
        assert ours["losses"] == pytest.approx(plain["losses"], abs=1e-5)
        for name, weight in plain["weights"].items():
            torch.testing.assert_close(ours["weights"][name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("world", WORLDS[1:])
def test_every_split_keeps_the_same_tokens(ranks, world):
    def kept(world: int) -> list[set[Any]]:
        """The samples of each whole optimizer step, with their kept tokens."""
        each = 4 // world
        seen = [rank["ours, False"]["steps"] for rank in ranks[world]]
        return [{pair for steps in seen for pair in steps[n * each : (n + 1) * each]} for n in range(STEPS - 1)]

    assert kept(world) == kept(1)
    assert all(len(step) == 4 for step in kept(world))


@pytest.mark.parametrize("world", WORLDS[1:])
def test_metrics_are_those_of_all_ranks_together(ranks, world):
    alone, together = (ranks[size][0]["ours, False"]["lines"] for size in (1, world))
    for number in range(STEPS - 1):
        for name, value in alone[number].items():
            # In the warm-up, the first step, the history's are of a sample: of which micro-batches, the split decides.
            if name.startswith("sstoken/") and not (number == 0 and "rel" in name):
                assert together[number][name] == pytest.approx(value, abs=1e-3), name


@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_report_is_that_of_all_ranks_together(ranks, world):
    first = ranks[world][0]["ours, False"]
    for rank, seen in enumerate(ranks[world]):
        assert seen["ours, False"]["page"] == (rank == 0)
        assert seen["ours, False"]["tables"] == first["tables"]
        assert chosen(seen) == chosen(ranks[world][0])
    if world == 2:
        # Ten samples do not split over four ranks: two are trained on twice.
        assert first["tables"] == ranks[1][0]["ours, False"]["tables"]
        alone = chosen(ranks[1][0])
        assert all(selected == alone.get(key, selected) for key, selected in chosen(ranks[world][0]).items())


def chosen(seen: dict[str, Any]) -> dict[tuple[str, int], list[bool]]:
    """What a rank scored: the tokens selected, by moment and sample. How many samples there are is a matter of time."""
    moments = seen["ours, False"]["moments"]
    return {
        (moment["label"], record["sample"]): record["selected"] for moment in moments for record in moment["records"]
    }
