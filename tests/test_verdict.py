"""The head of the page: what it says of a run, and what it does not claim."""

from __future__ import annotations

import pytest
from reports import moment, record, report

from sstoken_plugin.report import Breakdown
from sstoken_plugin.report.content import KINDS
from sstoken_plugin.report.verdict import verdict

SETTINGS = {"selector": "sstoken", "ratio": 0.6, "gamma": 0.5, "keep_eos": True}


def lines(count=20, **fields):
    return [{"step": step, "loss": 1.0, "sstoken/loss_unselected": 1.0, **fields} for step in range(1, count + 1)]


def findings(settings=(), **fields):
    made = report(
        moment([record(["p", "a", "b", "c", "d"])]),
        **{"settings": {**SETTINGS, **dict(settings)}, "log": lines(), "compare": "Compare it so.", **fields},
    )
    return {one.question: one for one in verdict(made)}


def said(finding):
    return " ".join([finding.answer, *finding.sentences])


def test_it_says_what_was_trained_on_in_numbers_and_words():
    rows = [("words", 800, 500), ("numbers", 100, 50), ("names", 10, 0), ("punctuation", 90, 80)]
    tables = [Breakdown("By turn", "", [("turn 1", 900, 600)]), Breakdown(KINDS, "", rows)]
    found = findings(breakdowns=tables)["What was trained on"]
    assert found.answer == "63\u00a0% of the response tokens"
    assert found.sentences == [
        "630 of 1,000: the best by 0.5 \u00d7 REL + 0.5 \u00d7 prompt attention.",
        "More than `ratio: 0.6`: what is kept of each sample is rounded up, ends of turns included, which shows where "
        "responses are short.",
        # Names were too few to tell.
        "Dropped most often: numbers (50\u00a0%), words (38\u00a0%).",
    ]


def test_a_threshold_is_no_ratio():
    found = findings({"selector": "threshold", "min_probability": 0.05})["What was trained on"]
    assert found.sentences[0].endswith(": those with a probability of 0.05 or more.")
    assert "ratio" not in said(found)


def test_each_warning_is_a_sentence_and_comes_before_all_that_could_be_done():
    found = findings(warnings=["ssToken: the loss on dropped tokens rose.", "sstoken.ratio: lower it."])
    health = found["Does it look healthy?"]
    assert (health.answer, health.tone) == ("2 warnings", "warning")
    assert health.sentences == ["The loss on dropped tokens rose.", "sstoken.ratio: lower it."]
    assert found["Next"].answer == "Do what the warnings say."


def test_a_run_too_short_to_be_watched_is_not_called_healthy():
    assert findings()["Does it look healthy?"].tone == "good"
    short = findings(log=lines(9))["Does it look healthy?"]
    assert short.tone == "plain"
    assert "takes 10 log lines to tell, and this run has 9" in said(short)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([(10, 1.5), (20, 1.25)], "fell from 1.5 to 1.25 (steps 10 to 20)."),
        ([(10, 1.5), (20, 1.25), (30, 2.0)], "rose from 1.5 to 2 (steps 10 to 30, lowest 1.25 at step 20)."),
        ([(10, 1.5), (20, 1.501)], "stayed at 1.501 (steps 10 to 20)."),
        ([(20, 1.25)], "was 1.25 at step 20."),
    ],
)
def test_it_says_where_the_evaluation_loss_went_and_that_one_run_cannot_tell(values, words):
    found = findings(log=lines() + [{"step": step, "eval_loss": value} for step, value in values])
    paid = found["Did it pay?"]
    assert paid.answer == "One run alone cannot tell."
    assert paid.sentences[0] == f"The evaluation loss, over all response tokens, {words}"
    # The two losses never stand together without that.
    assert "The training loss is another thing, over kept tokens alone" in said(paid)
    assert "Compare it so." in found["Next"].sentences


def test_without_an_evaluation_it_asks_for_one():
    found = findings()
    assert "It was not evaluated" in said(found["Did it pay?"])
    assert "Give the run evaluation data." in found["Next"].sentences


def test_ends_of_turns_that_were_dropped_are_named_with_the_key():
    found = findings(log=lines(**{"sstoken/eos_selected": 0.25}))["Next"]
    assert "Of the ends of turns 25\u00a0% were kept at last: set `keep_eos: true`" in said(found)
    assert "keep_eos" not in said(findings(log=lines(**{"sstoken/eos_selected": 1.0}))["Next"])


def test_plain_training_is_called_so():
    found = findings({"selector": "all"})
    assert "every one, as in plain training" in said(found["What was trained on"])
    assert "This run was plain training." in found["Did it pay?"].sentences
    assert "kept tokens alone" not in said(found["Did it pay?"])


def test_an_inspection_claims_no_training():
    found = findings(log=[])
    assert list(found) == ["What would be trained on", "Next"]
    assert "2 of 4: the best" in said(found["What would be trained on"])
    assert found["Next"].answer == "Nothing was trained for this page."


def test_a_selector_that_is_not_there_any_more_has_its_name():
    assert "ranked by gone" in said(findings({"selector": "gone"})["What was trained on"])
