"""Warnings about a selection that has gone wrong, each raised once."""

import pytest

from sstoken_plugin.collapse import CollapseMonitor


def observe(dropped, leading=0.5, rule="sstoken", ratio=0.6):
    monitor = CollapseMonitor()
    lines = [{"sstoken/loss_unselected": loss, "sstoken/selected_ratio": ratio} for loss in dropped]
    return [text for line in lines for text in monitor.observe(rule, line, leading)]


def test_a_dropped_loss_that_runs_away_is_told_once():
    (text,) = observe([1.0] * 10 + [1.0 + 0.2 * step for step in range(20)])
    assert "dropped tokens rose from 1.00" in text
    assert "sstoken." in text


@pytest.mark.parametrize("dropped", [[2.0] * 40, [3 - 0.05 * i for i in range(40)], [1.0, 1.4, 0.8] * 15, [9.0] * 5])
def test_an_ordinary_dropped_loss_is_not(dropped):
    assert observe(dropped) == []


def test_the_first_tokens_being_kept_is_told_once():
    (text,) = observe([1.0] * 20, leading=0.99)
    assert "first tokens" in text
    assert observe([1.0] * 20, leading=0.9) == []


def test_it_is_no_warning_where_the_user_asked_for_it():
    assert observe([1.0] * 20, leading=1.0, rule="position") == []
    assert observe([1.0] * 20, leading=1.0, ratio=1.0) == []


def test_the_end_of_the_warmup_starts_the_watch_anew():
    monitor = CollapseMonitor()
    texts = []
    for rule, loss in [("attention", 1.0)] * 20 + [("sstoken", 3.0)] * 30:
        texts += monitor.observe(rule, {"sstoken/loss_unselected": loss, "sstoken/selected_ratio": 0.6}, 0.5)
    assert texts == []
