"""Two ranks, of which one fails at something that is only for the page: both end their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from material import run_command
from rank_faults import FAULTS


@pytest.fixture(scope="module")
def ranks(small_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("faults")
    config = {
        **small_run, "plugins": ["sstoken", "cpu_plugin.OnCpu"], "sstoken": {"warmup_ratio": 0.2}, "max_steps": 6,
        "micro_batch_size": 1, "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 6,
    }  # fmt: skip
    file = out / "config.json"
    file.write_text(json.dumps(config))
    script = Path(__file__).parent / "rank_faults.py"
    # Ranks that wait for each other run into its time limit.
    run = run_command(
        "torchrun", "--standalone", "--nproc_per_node", "2", str(script), str(file), str(out),
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    assert "made up" in run.stdout
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_one_rank_costs_a_picture_on_both(ranks, fault):
    one, other = (seen[fault] for seen in ranks)
    for name in ("steps", "moments", "samples", "weights"):
        assert one[name] == other[name], name
    assert one["steps"] == (8 if "checkpoint" in fault else 6)
    assert one["counts"] == other["counts"] == (fault != "what is counted")
    assert one["page"] == (fault != "the page")
    if fault in ("every moment", "the texts", "the samples"):
        assert not one["moments"]
    else:
        assert one["moments"]


def test_the_weights_are_those_of_a_run_without_a_fault(ranks):
    found = {seen["weights"] for name, seen in ranks[0].items() if "checkpoint" not in name}
    assert len(found) == 1
