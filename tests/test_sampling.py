"""Signals by which nothing ranks are measured on samples: what a run computes, and what it logs."""

import json
from itertools import pairwise

import pytest
import torch

from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.selection.scores import normalise
from sstoken_plugin.training.sampling import EVERY, is_sampled

STEPS, MICRO_BATCHES = 10, 20
SAMPLED = [9]
# After a warm-up of half of the steps, with its sample.
RANKED = [9, *range(10, 20)]


@pytest.mark.parametrize("total", [1, 7, 19, 20, 39, 40, 399, 12345])
def test_samples_are_one_in_twenty_and_evenly_spread(total):
    found = [number for number in range(total) if is_sampled(number, total)]
    assert len(found) == max(1, total // EVERY)
    gaps = {after - before for before, after in pairwise(found)}
    assert not gaps or (min(gaps) >= EVERY and max(gaps) - min(gaps) <= 1)
    # As far from the start as from the end.
    assert abs(found[0] - (total - 1 - found[-1])) <= 1


@pytest.fixture
def probed(monkeypatch):
    """One entry for each forward pass whose prompt attention was measured."""
    made = []
    measure = PromptAttention.measure

    def count(self, prompt):
        made.append(prompt.shape)
        return measure(self, prompt)

    monkeypatch.setattr(PromptAttention, "measure", count)
    return made


@pytest.fixture
def measured(config, train, steps, forwards, probed):
    """Train, and return the run and which of its micro-batches had losses of the history, and prompt attention."""

    def run(**block):
        for taken in (steps, forwards, probed):
            taken.clear()
        trained = train({**config, "max_steps": STEPS, "sstoken": {"report": False, "history_cache": False, **block}})
        assert len(steps) == MICRO_BATCHES
        rel, attention = (
            [number for number, (step, _) in enumerate(steps) if getattr(step.scores, name) is not None]
            for name in ("rel", "attention")
        )
        assert len(forwards) == len(rel)
        # One more for each look at the first batch that proves that it changes nothing.
        assert len(attention) <= len(probed) <= len(attention) + 2
        return trained, rel, attention

    return run


@pytest.mark.parametrize("selector", ["random", "position", "all", "probability"])
def test_a_control_pays_for_samples_alone(measured, selector):
    run, rel, attention = measured(selector=selector)
    assert rel == attention == SAMPLED
    # Two micro-batches a step.
    logged = [number for number, line in enumerate(run.lines) if "sstoken/rel_mean" in line]
    assert logged == [4]
    assert {"sstoken/attention_mean", "sstoken/signal_overlap"} <= run.lines[4].keys()
    assert run.lines[0].keys() >= {"sstoken/selected_ratio", "sstoken/loss_selected", "sstoken/position_overlap"}


def test_each_selector_measures_what_it_ranks_by(measured):
    everything = list(range(MICRO_BATCHES))
    for selector, ranks_by in (("attention", "attention"), ("rel", "rel"), ("lowest_base_loss", "rel")):
        _, rel, attention = measured(selector=selector, warmup_ratio=0.0)
        found = {"rel": rel, "attention": attention}
        assert found.pop(ranks_by) == everything
        assert list(found.values()) == [SAMPLED]


@pytest.mark.parametrize(
    ("warmup_selector", "attention"),
    [("attention", [*range(MICRO_BATCHES)]), ("all", RANKED), ("random", RANKED)],
)
def test_a_warmup_runs_no_history(measured, warmup_selector, attention):
    run, rel, probed = measured(warmup_ratio=0.5, warmup_selector=warmup_selector)
    assert rel == RANKED
    assert probed == attention
    assert all("sstoken/rel_mean" in line for line in run.lines[STEPS // 2 :])


def test_where_attention_says_nothing_rel_ranks_as_ever(config, measured, steps, tmp_path):
    """Samples without a prompt, under `attention`: what is sampled for metrics decides nothing."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"Text number {n} has words of its own."}) + "\n" for n in range(24)))
    config["datasets"] = [{"path": str(file), "type": "completion"}]
    _, rel, _ = measured(selector="attention")
    assert rel == list(range(MICRO_BATCHES))
    for step, _ in steps:
        wanted = normalise(step.scores.rel, step.layout.sample, len(step.layout.lengths))
        assert torch.equal(step.scores.score, wanted)


def test_short_steps_are_sampled_as_often(config, train, steps):
    """Epochs of 6 micro-batches where an optimizer step would take 20."""
    short = {"micro_batch_size": 4, "gradient_accumulation_steps": EVERY, "max_steps": 4}
    train({**config, **short, "sstoken": {"report": False, "selector": "random"}})
    sampled = [number for number, (step, _) in enumerate(steps) if step.scores.rel is not None]
    assert len(steps) == 24
    # One for each optimizer step, in its middle.
    assert sampled == [2, 8, 14, 20]


def test_a_ratio_of_one_needs_no_signal(measured):
    _, rel, attention = measured(ratio=1.0, warmup_ratio=0.0)
    assert rel == attention == SAMPLED
