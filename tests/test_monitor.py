"""Warnings about odd data and about a selection that has gone wrong, each raised once."""

import json

import pytest

from sstoken_plugin.training.metrics import COUNTS
from sstoken_plugin.training.monitor import SelectionMonitor


def line(**counts):
    """One log line of 100 response tokens, 60 of them kept, 30 of those among the first 60."""
    usual = {"samples": 4, "response": 100, "kept": 60, "dropped_finite": 40, "rel_tokens": 100, "free_kept": 60}
    return dict.fromkeys(COUNTS, 0.0) | usual | {"leading_kept": 30} | counts


def observe(lines, rule="sstoken"):
    monitor = SelectionMonitor()
    return [text for counts in lines for text in monitor.observe(rule, counts)]


def dropping(losses):
    return [line(dropped_loss=40 * loss) for loss in losses]


def test_a_dropped_loss_that_runs_away_is_told_once():
    (text,) = observe(dropping([1.0] * 10 + [1.0 + 0.2 * step for step in range(20)]))
    assert "dropped tokens rose from 1.00" in text
    assert "sstoken.ratio" in text


def test_what_a_threshold_drops_is_no_matter_of_the_ratio():
    (text,) = observe(dropping([1.0] * 10 + [1.0 + 0.2 * step for step in range(20)]), rule="threshold")
    assert "sstoken.min_probability" in text
    (text,) = observe([line(only_ends_samples=1)], rule="threshold")
    assert "1 of 4 samples" in text
    assert "sstoken.min_probability" in text
    assert "ratio: " not in text


def test_samples_of_which_nothing_is_kept_are_told_as_such():
    (text,) = observe([line(kept=0, free_kept=0, leading_kept=0, nothing_samples=3)] * 2, rule="threshold")
    assert "3 of 4 samples kept no token at all" in text
    assert "sstoken.min_probability" in text
    assert "end of a turn" not in text


@pytest.mark.parametrize("losses", [[2.0] * 40, [3 - 0.05 * i for i in range(40)], [1.0, 1.4, 0.8] * 15, [9.0] * 5])
def test_an_ordinary_dropped_loss_is_not(losses):
    assert observe(dropping(losses)) == []


def test_what_a_checkpoint_holds_of_the_watch_does_not_grow_with_the_run():
    monitor, again = SelectionMonitor(), SelectionMonitor()
    begun = dropping([1.0] * 5 + [1.1] * 1000)
    for counts in begun:
        assert not monitor.observe("sstoken", counts)
    state = json.dumps(monitor.state())
    assert len(state) < 500
    again.restore(json.loads(state))
    (text,) = [text for counts in dropping([9.0] * 5) for text in again.observe("sstoken", counts)]
    assert "dropped tokens rose from 1.00 to" in text


def test_the_first_tokens_being_kept_is_told_once():
    (text,) = observe([line(leading_kept=60)] * 20)
    assert "first tokens" in text
    assert observe([line(leading_kept=54)] * 20) == []


def test_it_is_no_warning_where_the_user_asked_for_it():
    assert observe([line(leading_kept=60)] * 20, rule="position") == []
    assert observe([line(kept=99, dropped_finite=1, free_kept=99, leading_kept=98)] * 20, rule="threshold") == []
    assert observe([line(kept=100, dropped_finite=0, free_kept=100, leading_kept=100)] * 20) == []


def test_the_end_of_the_warmup_starts_the_watch_anew():
    monitor = SelectionMonitor()
    texts = []
    for rule, losses in (("attention", [1.0] * 20), ("sstoken", [3.0] * 30)):
        for counts in dropping(losses):
            texts += monitor.observe(rule, counts)
    assert texts == []


def test_odd_data_is_told_once():
    texts = observe([line(), line(promptless_samples=2), line(promptless_samples=1, non_finite=3), line(non_finite=9)])
    assert ["2 of 4 samples have no prompt" in texts[0], "3 tokens" in texts[1], len(texts)] == [True, True, 2]


@pytest.mark.parametrize(
    ("rule", "rel_tokens", "words"),
    [
        ("attention", 50, "REL alone decides"),
        ("attention", 0, "the first tokens are kept"),
        ("sstoken", 50, "REL alone"),
    ],
)
def test_what_decides_without_a_prompt_is_told(rule, rel_tokens, words):
    """Under `attention` too REL decides there, where there is a history."""
    (text,) = observe([line(promptless_samples=2, rel_tokens=rel_tokens)] * 2, rule=rule)
    assert words in text


def test_samples_without_a_prompt_are_told_where_attention_ranks():
    assert observe([line(promptless_samples=2)], rule="random") == []


def test_losses_that_are_not_finite_are_told_and_nothing_else_is_drawn_from_them():
    """Once weights are no numbers, the first tokens are kept, and the loss of those that are finite says little."""
    ordinary = [line(dropped_loss=40)] * 10
    broken = [line(leading_kept=60, dropped_loss=400, dropped_finite=10, non_finite=90)] * 20
    (text,) = observe(ordinary + broken)
    assert "90 tokens have a loss or a REL that is not finite" in text
    # A few among many do not switch the watch off.
    texts = observe([line(leading_kept=60, non_finite=1)] * 20)
    assert len(texts) == 2
    assert "first tokens" in texts[1]
