"""The report as a file: whole, safe, small whatever it is given. What a browser shows is in test_report_page.py."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from reports import drawn, moment, record, report

from sstoken_plugin.engine.run import Run
from sstoken_plugin.report import Breakdown, render
from sstoken_plugin.report.assembly import facts_of
from sstoken_plugin.report.fit import MAX_POINTS, MAX_ROWS, spread
from sstoken_plugin.report.page_data import PageData, as_json, page_data
from sstoken_plugin.report.render import MAX_BYTES, SMALL_BYTES
from sstoken_plugin.report.window import MAX_TOKENS, window

HOSTILE = [
    "hi", "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "</script x", "<!--<script ", "]]>",
    "\u2028", "\ud800",
]  # fmt: skip


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.inside, self.data = [], "", ""
        self.feed(text)
        self.data = json.loads(self.data)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id", "") if tag == "script" else ""

    def handle_data(self, data):
        if self.inside == "data":
            self.data += data


def numbers(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_texts_travel_exactly_and_add_no_markup():
    plain = Page(render(report(record(["p", "a"]))))
    fields = {"settings": {"<b>": "</script>"}, "history": "<i>", "warnings": ["<u>"], "facts": {"<a>": "<p>"}}
    text = render(report(record(HOSTILE), sentence="</script><b>", **fields))
    page = Page(text)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    # Whatever a parser takes for the end of a script.
    assert "<" not in text.partition('id="data">')[2].partition("</script>")[0]
    prompt, response = page.data["samples"][0]["runs"]
    assert prompt["text"] + response["text"] == "".join(HOSTILE)
    # Of each token, in the units of JavaScript's strings.
    assert np.frombuffer(base64.b64decode(response["lengths"]), "<u2").tolist() == [len(text) for text in HOSTILE[1:]]
    assert page.data["sentence"] == "</script><b>"
    assert page.data["settings"] == [["<b>", "</script>"]]
    assert page.data["facts"] == [["<a>", "<p>"]]
    assert page.data["verdict"][1]["sentences"] == ["<u>"]


def test_the_file_is_valid_utf8_and_loads_nothing():
    text = render(report(record(HOSTILE)))
    text.encode()
    page = Page(text)
    assert not any(name in attributes for _, attributes in page.tags for name in ("src", "href", "style", "onclick"))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_policy_allows_this_style_and_this_script_only():
    text = render(report(record(["p", "a"])))
    policy = next(a["content"] for _, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_numbers_travel_as_the_float32_that_they_are():
    made = drawn(50, seed=1)
    made["rel"][7] = None
    page = Page(render(report(made)))
    encoded = page.data["moments"][0]["records"][0]
    for name in ("rel", "attention", "score"):
        expected = [math.nan if value is None else value for value in made[name][4:]]
        np.testing.assert_array_equal(numbers(encoded[name]), np.array(expected, "<f4"))


def test_what_was_not_measured_takes_no_room():
    page = Page(render(report(record(["p", "a", "b"], rel=[None] * 3, history_nll=[None] * 3))))
    assert "rel" not in page.data["moments"][0]["records"][0]
    assert page.data["samples"][0]["history"] == ""


def test_rel_travels_where_it_is_not_the_difference_of_the_losses():
    made = drawn(50, seed=1)
    assert "rel" not in Page(render(report(made))).data["moments"][0]["records"][0]
    made["rel"][7] = float(np.nextafter(np.float32(made["rel"][7]), np.float32(9)))
    np.testing.assert_array_equal(
        numbers(Page(render(report(made))).data["moments"][0]["records"][0]["rel"]), np.array(made["rel"][4:], "<f4")
    )


@pytest.mark.parametrize(
    ("response", "attention", "there"),
    [
        ([False, False, True], [None, None, 0.0], True),
        ([True, True, False], [0.1, 0.1, None], True),
        ([True, True, True], [0.0, 0.0, 0.0], False),
        # The first token is never ranked: labelled or not is told by whether the others see it as a prompt.
        ([False, True, True], [None, 0.2, 0.1], True),
        ([False, True, True], [None, 0.0, 0.0], False),
    ],
)
def test_a_prompt_is_told_from_a_first_token_that_cannot_be_ranked(response, attention, there):
    page = Page(render(report(record(["a", "b", "c"], response=response, attention=attention))))
    assert page.data["samples"][0]["prompt"] is there


def shown(runs, response):
    return sum(len(run) for run in runs if run.shown and run.response == response)


def test_a_short_sample_is_shown_whole():
    runs = window([False] * 3 + [True] * 2 + [False] * 2 + [True])
    assert [(run.response, run.number, len(run), run.shown) for run in runs] == [
        (False, 1, 3, True),
        (True, 1, 2, True),
        (False, 2, 2, True),
        (True, 2, 1, True),
    ]


def test_a_long_prompt_loses_its_middle_and_the_response_stays_whole():
    runs = window([False] * 50000 + [True] * 40)
    assert [(run.response, run.shown) for run in runs] == [(False, True), (False, False), (False, True), (True, True)]
    assert shown(runs, True) == 40
    assert shown(runs, False) == MAX_TOKENS - 40


def test_a_long_response_loses_its_end():
    runs = window([False] * 20 + [True] * 50000)
    assert [run.shown for run in runs] == [True, True, False]
    assert runs[-1].stop - runs[-1].start == 50020 - MAX_TOKENS


@pytest.mark.parametrize("seed", range(30))
def test_the_window_covers_the_sample_and_shows_the_first_responses(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, random.integers(2, 12_000), random.integers(1, 30))
    response = [bool((index + seed) % 2) for index, length in enumerate(lengths) for _ in range(length)]
    runs = window(response)
    assert [place for run in runs for place in range(run.start, run.stop)] == list(range(len(response)))
    assert sum(len(run) for run in runs if run.shown) <= MAX_TOKENS
    visible = [place for run in runs if run.shown and run.response for place in range(run.start, run.stop)]
    assert visible == [place for place, there in enumerate(response) if there][: len(visible)]


def test_samples_are_left_out_only_of_a_page_that_would_be_too_large_for_a_browser():
    one = drawn(8000, 1, prompt=96)
    records = [{**one, "sample": number} for number in range(130)]
    text = render(report(*(moment(records, f"step {step}") for step in range(3))))
    assert 0.95 * MAX_BYTES < len(text.encode()) < MAX_BYTES
    page = Page(text)
    # First and last, and as many samples as fit.
    assert [entry["label"] for entry in page.data["moments"]] == ["step 0", "step 2"]
    count = len(page.data["samples"])
    assert 80 < count < 130
    assert page.data["left_out"].endswith(f"1 of 3 moments and the last {130 - count} of 130 samples.")


def test_moments_are_thinned_out_to_keep_the_page_small():
    records = [drawn(2000, seed, sample=seed) for seed in range(10)]
    text = render(report(*(moment(records, f"step {step}") for step in range(21))))
    assert len(text.encode()) < SMALL_BYTES
    page = Page(text)
    labels = [entry["label"] for entry in page.data["moments"]]
    assert len(page.data["samples"]) == 10
    assert 2 < len(labels) < 21
    assert (labels[0], labels[-1]) == ("step 0", "step 20")
    assert "moments" in page.data["left_out"]


def test_the_page_stays_small_with_hostile_text_everywhere():
    long = "\ud800" * 20_000
    names = [f"{name}{long}" for name in range(80)]
    fields = {
        "sentence": long,
        "history": long,
        "settings": {f"{long}{index}": long for index in range(200)},
        "versions": {f"{long}{index}": long for index in range(200)},
        "facts": {f"{long}{index}": long for index in range(200)},
        "compare": long,
        "warnings": [long] * 100,
        "log": [{"step": step, **dict.fromkeys(names, step)} for step in range(600)],
        "breakdowns": [Breakdown(long, long, [(f"{row}{long}", 2, 1) for row in range(2000)])] * 12,
        "notes": dict.fromkeys(names, long),
    }
    text = render(report(moment([record([long] * 800)] * 20, label=long), **fields))
    assert len(text.encode()) < MAX_BYTES
    assert len(Page(text).data["samples"]) >= 1


def test_logs_are_thinned_out_evenly_and_lines_may_lack_names():
    log = [{"step": step, "loss": 1 / (1 + step)} for step in range(2000)]
    log += [{"step": 1000, "eval_loss": 0.5}, {"eval_loss": 1.0}, {"step": 2000, "eval_loss": math.nan, "note": "text"}]
    data = Page(render(report(record(["p", "a"]), log=log))).data
    series = data["series"]
    assert data["thinned"].startswith("Of 2003 log lines")
    assert series.keys() == {"loss", "eval_loss"}
    assert len(series["loss"][0]) == MAX_POINTS
    assert (series["loss"][0][0], series["loss"][0][-1]) == (0, 1999)
    assert series["eval_loss"] == [[1000], [0.5]]


@pytest.mark.parametrize(("count", "words"), [(1, ("1 sample", "1 step")), (1000, ("1,000 samples", "1,000 steps"))])
def test_facts_count_their_nouns(count, words):
    found = facts_of(Run("tiny"), SimpleNamespace(), range(count), steps=count)
    assert (found["data"], found["steps"]) == words


HUGE = 10**400


def test_numbers_of_a_log_that_no_float_holds_are_left_out():
    log = [{"step": 1, "loss": 1.0, "eval_loss": HUGE}, {"step": HUGE, "loss": 9.0}, {"step": 2, "loss": -HUGE}]
    assert Page(render(report(record(["p", "a"]), log=log))).data["series"] == {"loss": [[1], [1.0]]}


@pytest.mark.parametrize("value", [HUGE, -HUGE])
@pytest.mark.parametrize("name", ["current_nll", "history_nll", "rel", "attention", "score"])
def test_a_record_with_a_number_that_no_float_holds_is_damaged(name, value):
    made = report(record(["p", "a"], **{name: [None, value]}))
    with pytest.raises(ValueError, match="a record is none"):
        page_data(json.loads(as_json(PageData(made))))


@pytest.mark.parametrize("counts", [(HUGE, 1), (HUGE, HUGE), (3, 4), (3, -1)], ids=["seen", "both", "more", "negative"])
def test_a_table_with_counts_that_cannot_be_is_damaged(counts):
    made = report(breakdowns=[Breakdown("By turn", "", [("turn 1", 9, 3), ("turn 2", *counts)])])
    with pytest.raises(ValueError, match="By turn has a row that no count gives"):
        page_data(json.loads(as_json(PageData(made))))


def test_a_long_table_keeps_what_was_seen_most_and_says_so():
    rows = [(f"word {index}", index, index // 2) for index in range(MAX_ROWS + 50)]
    table = Page(render(report(breakdowns=[Breakdown("By text", "", rows)]))).data["tables"][0]
    assert table["left_out"] == 50
    assert [row[0] for row in table["rows"]] == [row[0] for row in rows[50:]]
    assert (table["seen"], table["kept"]) == (sum(row[1] for row in rows), sum(row[2] for row in rows))


def test_curves_and_tables_beyond_the_limits_are_counted():
    log = [{"step": 1, **{f"number {index}": index for index in range(65)}}]
    tables = [Breakdown(f"table {index}", "", [("row", 2, 1)]) for index in range(15)]
    page = Page(render(report(log=log, breakdowns=tables))).data
    assert (len(page["series"]), len(page["tables"])) == (60, 12)
    assert page["left_out"].endswith("small: the last 5 of 65 curves and the last 3 of 15 tables.")


def test_spread_keeps_both_ends():
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(100, 1) == [99]
    for wanted in range(2, 50):
        chosen = spread(50, wanted)
        assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 49, wanted)


@pytest.mark.parametrize(
    "empty", [report(), report(moment([])), report(record([])), report(record(["p", "q"], prompt=2))]
)
def test_a_page_is_made_of_nothing_too(empty):
    Page(render(empty))
