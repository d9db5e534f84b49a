"""What is said of a run before it begins."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from sstoken_plugin.engine.step import Phase
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.turns import EndTokens
from sstoken_plugin.training import plan as module
from sstoken_plugin.training.plan import MEASURED, Plan, Schedule, _passes, plan_of
from sstoken_plugin.training.survey import Survey

PLAN = Plan(
    samples=52_002,
    tokens=9_000_000,
    response=4_103_211,
    kept=2_490_021,
    least=0.01,
    about=True,
    schedule=Schedule(4875, 3.0),
    warmup=975,
    warmup_keeps="all",
    history="initial",
    memory=0,
    store="out/sstoken/history",
    passes=0.34,
    time=(0.9, 1.14),
    kind="cpu, adapter",
)


def test_it_is_one_screen_of_lines_of_one_line():
    parts = dict(PLAN.parts())
    assert list(parts) == ["data", "kept", "steps", "history", "time"]
    assert parts["data"] == "about 52,002 samples, 4,103,211 response tokens (46% of 9,000,000)"
    assert parts["kept"] == "all in the warm-up, then about 2,490,021 response tokens, 60.7%"
    assert parts["steps"] == "4,875, 3 epochs, 975 of them the selection's warm-up"
    assert parts["history"] == (
        "initial, no memory; its losses are kept in out/sstoken/history, 9.4 MiB at most; "
        "a forward pass of it in 34% of the micro-batches"
    )
    assert parts["time"].startswith("0.90 to 1.14 of plain training's steps")
    assert "\n" not in PLAN.sentence()


def test_what_is_nearly_all_is_not_called_all():
    parts = dict(replace(PLAN, kept=4_103_000, passes=0.999).parts())
    assert parts["kept"].endswith("4,103,000 response tokens, 99.99%")
    assert parts["history"].endswith("in 99.9% of the micro-batches")


@pytest.mark.parametrize(("epochs", "words"), [(0.004, "0.004 epochs"), (0.75, "0.8 epochs"), (1.0, "1 epoch")])
def test_a_small_part_of_a_data_set_is_not_called_none(epochs, words):
    assert dict(replace(PLAN, schedule=Schedule(2, epochs), warmup=0).parts())["steps"] == f"2, {words}"


def test_one_sample_is_said_in_the_singular():
    parts = dict(replace(PLAN, samples=1, response=1, tokens=3).parts())
    assert parts["data"] == "about 1 sample, 1 response token (33% of 3)"


def test_what_is_not_known_is_said():
    parts = dict(replace(PLAN, time=None, kind="mps, adapter", history="", about=False).parts())
    assert "nothing was measured" in parts["time"]
    assert "mps" in parts["time"]
    assert parts["history"] == "none"
    assert not parts["data"].startswith("about")


@pytest.mark.parametrize(
    ("block", "epochs", "keeps", "expected"),
    [
        # docs/performance.md, "What a forward pass of the history costs": 0.81 of one epoch, 1/3 + 0.01 of three.
        ({}, 1.0, False, 0.81),
        ({}, 3.0, True, 1 / 3 + 0.01),
        ({}, 3.0, False, 0.81),
        ({"selector": "random"}, 3.0, True, 0.05),
        ({"selector": "attention"}, 1.0, False, 0.05),
        ({"ratio": 1.0}, 1.0, False, 0.05),
    ],
    ids=repr,
)
def test_a_sample_needs_a_pass_of_the_history_once_or_in_each_epoch(block, epochs, keeps, expected):
    config = SSTokenConfig(**block)
    warmup = config.warmup_ratio if config.has_warmup else 0.0
    assert _passes(Phase.of(config), warmup, epochs, keeps=keeps) == pytest.approx(expected)


def plan(**block):
    """Return the plan of 10 steps of one epoch, in a full training whose losses of the history are all kept."""
    rows = [{"input_ids": [1, *range(5, 15)], "labels": [-100, *range(5, 15)]}] * 4
    selection = SimpleNamespace(config=SSTokenConfig(**block), history=None)
    survey = Survey.of(Dataset.from_list(rows), EndTokens({2}))
    return plan_of(selection, SimpleNamespace(device=torch.device("cpu")), survey, Schedule(10, 1.0), "")


@pytest.mark.parametrize(
    ("block", "kept"),
    [
        ({}, "all in the warm-up, then 24 response tokens, 60.0%"),
        ({"warmup_selector": "attention"}, "24 response tokens, 60.0%"),
        ({"warmup_ratio": 0.0}, "24 response tokens, 60.0%"),
        ({"selector": "random"}, "24 response tokens, 60.0%"),
        ({"ratio": 1.0}, "40 response tokens, 100.0%"),
        ({"selector": "threshold"}, "all in the warm-up, then what has a probability of 0.01 or more"),
        (
            {"selector": "threshold", "warmup_selector": "attention", "min_probability": 0.2},
            "after the warm-up what has a probability of 0.2 or more",
        ),
        ({"selector": "threshold", "warmup_ratio": 0.0}, "what has a probability of 0.01 or more"),
    ],
    ids=repr,
)
def test_what_is_kept_is_said_of_the_steps_in_which_it_is(block, kept):
    assert dict(plan(**block).parts())["kept"] == kept


def test_steps_of_a_warm_up_that_keeps_all_are_those_of_plain_training():
    (low, high), _ = MEASURED["cpu", "full"]
    assert plan(warmup_selector="attention").time == pytest.approx((low, high))
    assert plan().time == pytest.approx((0.2 + 0.8 * low, 0.2 + 0.8 * high))
    assert plan(warmup_ratio=1.0).time == pytest.approx((1, 1))


def test_the_docs_have_the_numbers_that_the_rule_takes():
    page = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
    section = page.split("## The rule of the plan")[1].split("\n## ")[0]
    found = {
        (device, trained): tuple(tuple(map(float, cell.split(" to "))) for cell in (warm, full))
        for device, trained, warm, full in re.findall(r"\| `(\w+)`, (\w+) \| ([\d. to]+?) \| ([\d. to]+?) \|", section)
    }
    assert found == MEASURED


def test_a_training_begins_with_its_plan(config, train, caplog):
    with caplog.at_level("INFO", logger="axolotl"):
        train({**config, "max_steps": 12, "sstoken": {"report": False}})
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("ssToken plan")]
    assert "data: 24 samples, 288 response tokens" in line
    assert "steps: 12, 2 epochs, 3 of them the selection's warm-up" in line
    assert "out/sstoken/history" in line
    # 0.75 of two epochs' passes are asked for, and each sample needs one: 1 / 2, and one in 20 of the warm-up.
    assert "a forward pass of it in 51% of the micro-batches" in line


def test_a_plan_that_fails_is_told_and_costs_no_training(config, train, caplog, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such number")

    monkeypatch.setattr(module, "_passes", fail)
    run = train({**config, "max_steps": 1, "sstoken": {"report": False}})
    assert run.trainer.state.global_step == 1
    assert "ssToken: there is no plan of the run: RuntimeError: no such number." in caplog.text
