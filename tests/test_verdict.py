"""The head of the page: what it says of a run, and what it does not claim."""

from __future__ import annotations

import pytest
from reports import moment, record, report

from sstoken_plugin.report import Breakdown
from sstoken_plugin.report.content import KINDS
from sstoken_plugin.report.verdict import verdict

SETTINGS = {"selector": "sstoken", "ratio": 0.6, "gamma": 0.5, "keep_eos": True, "warmup_ratio": 0.0}


def lines(count=20, **fields):
    return [{"step": step, "loss": 1.0, "sstoken/loss_unselected": 1.0, **fields} for step in range(1, count + 1)]


def findings(settings=(), rule=None, label="step 20 of 20", **fields):
    settings = {**SETTINGS, **dict(settings)}
    made = report(
        moment([record(["p", "a", "b", "c", "d"])], label=label, rule=rule or settings["selector"]),
        **{"settings": settings, "log": lines(), "compare": "Compare it so.", **fields},
    )
    return {one.question: one for one in verdict(made)}


def said(finding):
    return " ".join([finding.answer, *finding.sentences])


def test_it_says_what_was_trained_on_in_numbers_and_words():
    rows = [("words", 800, 500), ("numbers", 100, 50), ("names", 10, 0), ("punctuation", 90, 80)]
    tables = [Breakdown("By turn", "", [("turn 1", 900, 600)]), Breakdown(KINDS, "", rows)]
    found = findings(breakdowns=tables, share="ratio: 0.6 comes to 63.0% here")["What was trained on"]
    assert found.answer == "63\u00a0% of the response tokens"
    assert found.sentences == [
        "630 of 1,000, ranked by 0.5 \u00d7 REL + 0.5 \u00d7 prompt attention.",
        "ratio: 0.6 comes to 63.0% here.",
        # Names were too few to tell.
        "Dropped most often: numbers (50\u00a0%), words (38\u00a0%).",
    ]


def test_what_is_nearly_all_is_not_called_all():
    rows = [("words", 4000, 3988), ("numbers", 100, 96)]
    found = findings(breakdowns=[Breakdown(KINDS, "", rows)])["What was trained on"]
    assert found.answer == "99.6\u00a0% of the response tokens"
    assert found.sentences[-1] == "Dropped most often: numbers (4.0\u00a0%)."
    few = findings(breakdowns=[Breakdown(KINDS, "", [("words", 40_000, 39_988), ("numbers", 40_000, 40_000)])])
    assert said(few["What was trained on"]).endswith("Dropped most often: words (0.03\u00a0%).")
    ends = findings(log=lines(**{"sstoken/eos_selected": 0.997}))["Next"]
    assert "Of the ends of turns 99.7\u00a0% were kept at last" in said(ends)


def test_a_setting_is_not_rounded():
    tables = [Breakdown("By turn", "", [("turn 1", 100, 60)], "sstoken")]
    found = findings({"warmup_ratio": 0.125}, breakdowns=tables)["What was trained on"]
    assert "The warm-up, the first 12.5\u00a0% of the optimizer steps" in said(found)


def test_a_threshold_is_no_ratio():
    settings = {"selector": "threshold", "min_probability": 0.125}
    found = findings(settings)["What was trained on"]
    words = "ranked by their probability: those with 0.125 or more were kept"
    assert found.sentences == [f"2 of 4 there (step 20 of 20), {words}, and the ends of turns."]
    assert findings({**settings, "keep_eos": False})["What was trained on"].sentences[0].endswith(f", {words}.")


WARMUPS = [("all", "all of them"), ("attention", "the best by prompt attention"), ("random", "random ones")]


@pytest.mark.parametrize(("warmup", "words"), WARMUPS)
def test_what_the_warm_up_trained_on_is_told_apart(warmup, words):
    tables = [Breakdown("By turn", "", [("turn 1", 100, 60)], "sstoken")]
    settings = {"warmup_ratio": 0.2, "warmup_selector": warmup}
    assert findings(settings, breakdowns=tables)["What was trained on"].sentences == [
        "60 of 100 after the warm-up, ranked by 0.5 \u00d7 REL + 0.5 \u00d7 prompt attention.",
        f"The warm-up, the first 20\u00a0% of the optimizer steps, trained on {words}.",
    ]


@pytest.mark.parametrize(("warmup", "words"), [("all", "every one"), ("attention", "ranked by prompt attention")])
def test_a_run_that_was_all_warm_up_does_not_claim_the_rule_of_the_settings(warmup, words):
    """By the tables where there are some, as where a run was stopped in its warm-up, and by the last moment."""
    settings = {"warmup_ratio": 0.5, "warmup_selector": warmup}
    tables = [Breakdown("By turn", "", [("turn 1", 100, 100)], warmup)]
    for fields in ({"breakdowns": tables, "rule": "sstoken"}, {"rule": warmup}):
        found = findings(settings, share="ratio: 0.6 comes to 63.0% here", **fields)
        trained = found["What was trained on"]
        assert words in trained.sentences[0]
        assert trained.sentences[1:] == [
            "That is the warm-up (`warmup_ratio: 0.5`): `selector: sstoken` has not ranked."
        ]
        assert "REL" not in said(trained)
        assert ("This run was plain training." in found["Did it pay?"].sentences) == (warmup == "all")


def test_without_tables_it_is_of_the_samples_shown():
    found = findings(label="step 9 of 40")["What was trained on"]
    assert found.answer == "50\u00a0% of the response tokens in the samples shown"
    assert found.sentences[0].startswith("2 of 4 there (step 9 of 40), ranked by ")


def test_a_checkpoint_before_the_first_log_line_is_of_a_training():
    assert "What was trained on" in findings(log=[], facts={"steps": "2 steps"})


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


def test_the_lines_of_the_warm_up_do_not_count():
    """Attention drops tokens there, whose loss is logged too, and the watch begins anew behind it."""
    settings = {"warmup_ratio": 0.5, "warmup_selector": "attention"}
    assert "this run has 9 with a loss on them after the warm-up" in said(
        findings(settings, log=lines(19), label="step 19 of 20")["Does it look healthy?"]
    )
    # Of a checkpoint, the warm-up is that of the whole run.
    assert "this run has 5" in said(findings(settings, label="step 20 of 30")["Does it look healthy?"])
    assert findings(settings)["Does it look healthy?"].tone == "good"


@pytest.mark.parametrize(
    ("selector", "is_watched"), [("sstoken", True), ("random", True), ("position", False), ("threshold", False)]
)
def test_it_claims_nothing_of_position_where_that_is_not_watched(selector, is_watched):
    found = findings({"selector": selector})["Does it look healthy?"]
    assert "Dropped tokens were not unlearned" in said(found)
    assert ("position" in said(found)) == is_watched


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


def test_each_of_several_evaluation_sets_has_its_sentence():
    log = [{"step": 10, "eval_math_loss": 1.5, "eval_runtime": 9.0}, {"step": 10, "eval_chat_loss": 2.0}]
    log += [{"step": 20, "eval_math_loss": 1.25}, {"step": 20, "eval_chat_loss": 2.5}]
    found = findings(log=lines() + log)
    assert found["Did it pay?"].sentences[:2] == [
        "The evaluation loss on math, over all response tokens, fell from 1.5 to 1.25 (steps 10 to 20).",
        "The evaluation loss on chat, over all response tokens, rose from 2 to 2.5 (steps 10 to 20).",
    ]
    assert "evaluat" not in " ".join(found["Did it pay?"].sentences[2:])
    assert "Give the run evaluation data." not in found["Next"].sentences
    many = findings(log=[{"step": 1, **{f"eval_set_{place}_loss": 1.0 for place in range(9)}}])["Did it pay?"]
    assert many.sentences[3].startswith("The evaluation loss on set_3, ")
    assert many.sentences[4] == "The log has those of 5 more sets."


def test_the_training_loss_of_a_threshold_is_over_the_number_of_all_tokens():
    paid = said(findings({"selector": "threshold"})["Did it pay?"])
    assert "a sum over kept tokens by the number of all: it compares neither" in paid
    assert "kept tokens alone" not in paid


def test_without_an_evaluation_it_asks_for_one():
    found = findings()
    assert "It was not evaluated" in said(found["Did it pay?"])
    assert "Give the run evaluation data." in found["Next"].sentences


def test_ends_of_turns_that_were_dropped_are_named_with_the_key():
    found = findings(log=lines(**{"sstoken/eos_selected": 0.25}))["Next"]
    assert "Of the ends of turns 25\u00a0% were kept at last: set `keep_eos: true`" in said(found)
    assert "keep_eos" not in said(findings(log=lines(**{"sstoken/eos_selected": 1.0}))["Next"])


@pytest.mark.parametrize("settings", [{"selector": "all"}, {"ratio": 1.0}, {"ratio": 1, "warmup_ratio": 0.2}], ids=str)
def test_plain_training_is_called_so(settings):
    found = findings(settings, log=[{"step": 1, "loss": 1.0, "sstoken/eos_selected": 0.5}])
    assert "logging_steps" not in said(found["Does it look healthy?"])
    assert "keep_eos" not in said(found["Next"])
    assert "every one, as in plain training" in said(found["What was trained on"])
    assert "This run was plain training." in found["Did it pay?"].sentences
    assert "kept tokens alone" not in said(found["Did it pay?"])
    # It is what others are compared with, and nothing is struck through in it.
    assert found["Next"].answer == "Compare it with a run that selects."
    assert "`selector: sstoken`" in found["Next"].sentences[0]
    assert "Compare it so." not in found["Next"].sentences
    assert "struck through" not in said(found["Next"])


@pytest.mark.parametrize("warmup", ["all", "attention"])
def test_a_run_that_ended_in_its_warm_up_is_to_be_trained_past_it(warmup):
    found = findings({"warmup_ratio": 0.5, "warmup_selector": warmup}, rule=warmup)["Next"]
    assert found.answer == "Train past the warm-up."
    assert "Compare it so." not in found.sentences
    assert ("struck through" in said(found)) == (warmup == "attention")


def test_an_inspection_claims_no_training():
    found = findings(log=[])
    assert list(found) == ["What would be trained on", "Next"]
    assert "2 of 4 there" in said(found["What would be trained on"])


@pytest.mark.parametrize("label", ["untrained model", "adapter outputs/a", "after 20 of 60 steps"])
def test_an_inspection_names_the_model_that_selects(label):
    found = findings(log=[], label=label)["Next"]
    assert found.sentences[0] == f"The model that selects here: {label}."
    assert "Nothing was trained" not in said(found)


def test_a_selector_that_is_not_there_any_more_has_its_name():
    assert "ranked by gone" in said(findings({"selector": "gone"})["What was trained on"])
