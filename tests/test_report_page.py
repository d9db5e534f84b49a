"""The report page in a real browser: what a reader sees, and that the page selects exactly as training does."""

import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from reports import drawn, moment, record, report
from selenium.webdriver.common.keys import Keys

from sstoken_plugin.base.numbers import percent
from sstoken_plugin.report import Breakdown
from sstoken_plugin.report.content import KINDS
from sstoken_plugin.selection import scores as selection

LOG = [
    {"step": step, "loss": 2 / step, "sstoken/loss_selected": 1 / step, "sstoken/loss_unselected": 3 / step,
     "sstoken/rel_mean": step / 100, "sstoken/other": step, "epoch": step / 10, "memory": step * 10}
    for step in range(1, 21)
] + [{"step": 10, "eval_loss": 1.5}, {"step": 20, "eval_loss": 1.25}]  # fmt: skip


def full_report():
    records = [[drawn(40 + 30 * sample, 10 * step + sample, sample=sample) for sample in range(3)] for step in range(4)]
    moments = [moment(each, f"step {step} of 3") for step, each in enumerate(records)]
    rows = [(f" word {index}\n", 10 + index, index // 2) for index in range(60)]
    return report(
        *moments,
        sentence="ssToken is active.",
        facts={"model": "tiny", "data": "d.jsonl (3 samples)"},
        history="the weights before this training",
        settings={"selector": "sstoken", "ratio": 0.6, "seed": None},
        versions={"torch": "2.13.0"},
        warnings=["something is odd"],
        log=LOG,
        notes={"sstoken/rel_mean": "Near 0 it is noise."},
        breakdowns=[
            Breakdown("By turn", "Tokens by turn.", [("turn 1", 100, 80), ("turn 2", 50, 10)]),
            Breakdown("By text", "", rows),
        ],
    )


def numbers_of(browser):
    return dict(
        browser.run(
            "return [...document.querySelectorAll('#readout dl div')].map(d => [...d.children].map(c => c.textContent))"
        )
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_opens_whole_at_every_width_and_asks_for_nothing(browser, width, dark):
    browser.open(full_report(), width, dark=dark)
    assert browser.texts("main > section > h2") == ["Samples", "Training", "Where tokens were kept"]
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.errors() == []
    assert browser.requests() == []
    # A warning is on show at every width; other answers are short on a phone.
    assert browser.texts(".finding.warning li") == ["Something is odd"]
    assert browser.texts(".finding b") == [
        "37\u00a0% of the response tokens", "1 warning", "One run alone cannot tell.",
        "Do what the warnings say.",
    ]  # fmt: skip
    assert bool(browser.texts(".finding.plain li")) is (width > 960)
    size = Path(unquote(browser.driver.current_url.removeprefix("file://"))).stat().st_size
    assert browser.texts("#facts span") == ["tiny", "d.jsonl (3 samples)", f"this page: {size / 1000:.0f} kB"]
    browser.click("#settings > summary")
    assert browser.text("#history") == "REL compares with the weights before this training."
    assert "seednull" in browser.texts("#settings-table tr")
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) < 60) is dark


def test_what_is_kept_is_marked_without_colour_too(browser):
    made = drawn(30, 1)
    browser.open(report(made))
    assert browser.kept() == ["".join(str(int(there)) for there in made["selected"][4:])]
    line = "return getComputedStyle(document.querySelector(arguments[0])).textDecorationLine"
    assert browser.run(line, ".response .t.kept") == "underline"
    assert browser.run(line, ".response .t.dropped") == "line-through"
    assert browser.texts(".run h4") == ["prompt", "response"]
    assert browser.text(".count") == "18 of 30 response tokens kept"


def test_a_token_shows_its_numbers_on_hover_tap_and_focus(browser):
    made = drawn(12, 3)
    made["attention"][5] = None
    browser.open(report(made, ends=[[15]]))
    order = np.argsort([-score for score in made["score"][4:15]], kind="stable").tolist()

    def check(place):
        token = place + 4
        found = numbers_of(browser)
        for label, name in (("current loss", "current_nll"), ("history loss", "history_nll"), ("score", "score")):
            assert float(found[label]) == pytest.approx(made[name][token], rel=1e-3)
        assert float(found["REL"].split(",")[0]) == pytest.approx(made["rel"][token], rel=1e-3)
        assert ("gained" in found["REL"]) == (made["rel"][token] > 0)
        # The end of the turn ranks first.
        rank = 1 if token == 15 else order.index(place) + 2
        word = "kept" if made["selected"][token] else "dropped"
        assert browser.text(".verdict") == f"rank {rank} of 12, {word}"
        assert f"Token {token + 1} of 16, response token {place + 1} of 12" in browser.text("#readout-body")
        return found

    browser.click(".response .t:nth-child(4)")
    check(3)
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    check(4)
    browser.driver.switch_to.active_element.send_keys(Keys.HOME)
    check(0)
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert check(1)["attention"] == "not measured"
    browser.driver.switch_to.active_element.send_keys(Keys.END)
    check(11)
    assert "Ends a turn" in browser.text("#readout-body")
    assert "rank 1 of 12" in browser.driver.switch_to.active_element.get_attribute("aria-label")
    browser.run(
        "document.querySelectorAll('.response .t')[6].dispatchEvent("
        "new PointerEvent('pointerover', {bubbles: true, pointerType: 'mouse'}))"
    )
    check(6)


def test_one_token_of_a_sample_is_in_the_tab_order(browser):
    browser.open(full_report())
    tabs = "return [...document.querySelectorAll('.sample')].map(s => s.querySelectorAll('.t[tabindex=\"0\"]').length)"
    assert browser.run(tabs) == [1, 1, 1]
    browser.click(".t:nth-child(8)")
    assert browser.run(tabs) == [1, 1, 1]
    start = browser.run("return document.activeElement.getBoundingClientRect().top")
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert browser.run("return document.activeElement.getBoundingClientRect().top") > start


def test_shading_follows_the_choice(browser):
    made = drawn(30, 5)
    browser.open(report(made))
    shades = (
        "return [...document.querySelectorAll('.response .t')]"
        ".map(t => Number(getComputedStyle(t).getPropertyValue('--shade')))"
    )
    score = np.array(made["score"][4:])
    assert browser.run(shades) == pytest.approx((score - score.min()) / (score.max() - score.min()), abs=1 / 30)
    browser.run("document.querySelector('[value=attention]').click()")
    browser.settle()
    attention = np.array(made["attention"][4:])
    expected = (attention - attention.min()) / (attention.max() - attention.min())
    assert browser.run(shades) == pytest.approx(expected, abs=1 / 30)
    browser.run("document.querySelector('[value=rel]').click()")
    browser.settle()
    lost = browser.run("return [...document.querySelectorAll('.response .t')].map(t => t.classList.contains('lost'))")
    assert lost == [value < 0 for value in made["rel"][4:]]
    assert browser.text("#legend") == "lostgained"


def test_the_slider_moves_through_the_moments_and_marks_what_changed(browser):
    made = [drawn(30, seed) for seed in (1, 2)]
    browser.open(report(moment([made[0]], "before training", rule="attention"), moment([made[1]], "step 9 of 9")))
    first, last = ["".join(str(int(there)) for there in one["selected"][4:]) for one in made]
    changed = (
        "return [...document.querySelectorAll('.response .t')]"
        ".map(t => t.matches('.added') ? 1 : t.matches('.removed') ? -1 : 0)"
    )
    # The last moment is shown first.
    assert browser.kept() == [last]
    assert browser.text("#moment-label") == "step 9 of 9"
    assert browser.run(changed) == [int(b) - int(a) for a, b in zip(first, last, strict=True)]
    assert browser.text(".change").startswith("Since before training: ")
    browser.set("moment", 0)
    assert browser.kept() == [first]
    assert browser.text("#moment-label") == "before training"
    assert "ranked by prompt attention" in browser.text("#rule")
    assert not any(browser.run(changed))
    browser.click(".strip:nth-of-type(2)")
    assert browser.kept() == [last]
    assert browser.run("return document.getElementById('moment').value") == "1"


def test_strips_show_kept_tokens_tall_and_dropped_ones_low(browser):
    made = [drawn(30, seed) for seed in (1, 2)]
    browser.open(report(moment([made[0]]), moment([made[1]])))
    tall = browser.run("""
        return [...document.querySelectorAll(".strip canvas")].map((canvas) => {
          const context = canvas.getContext("2d");
          return Array.from({length: 30}, (_, i) =>
            context.getImageData((i + 0.4) * canvas.width / 30, 3, 1, 1).data[3] > 0 ? 1 : 0).join("");
        });
    """)
    assert tall == ["".join(str(int(there)) for there in one["selected"][4:]) for one in made]


def test_one_moment_has_no_slider(browser):
    browser.open(report(drawn(10, 1)))
    assert browser.texts("#moment-box, .strips") == []


def random_case(seed):
    """Numbers with ties that float32 makes and double precision does not, with gaps, ends and no prompt."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 150))
    prompt = 0 if seed % 7 == 0 else int(random.integers(2, 6))
    rel, attention = random.normal(0, 1, count).astype("f4"), random.random(count, dtype=np.float32)
    if seed % 3:
        # Tenths from 0.37 to 1.37 and from 0 to 1: many pairs blend to nearly the same.
        rel = np.float32(0.37) + np.float32(0.1) * random.integers(0, 11, count).astype("f4")
        attention = np.float32(0.1) * random.integers(0, 11, count).astype("f4")
    if seed % 8 == 3:
        # Neighbours in float32, which the last bit of a quotient ranks.
        rel = np.float32(0.1) + np.float32(2**-26) * random.integers(0, 64, count).astype("f4")
        rel[0], rel[-1] = -0.2, 0.8 + 0.1 * random.random()
        attention[:] = 0.9
    if seed % 5 == 0:
        rel[random.random(count) < 0.2] = np.nan
    if seed % 11 == 0:
        rel[:] = 0.25
    made = record(["w "] * (prompt + count), prompt=prompt, sample=seed)
    made["input_ids"] = [2 if random.random() < 0.1 else 5 for _ in made["tokens"]]
    made["selected"] = [False] * prompt + [bool(there) for there in random.random(count) < 0.5]
    for name, values in (("rel", rel), ("attention", attention)):
        made[name] = [None] * prompt + [None if np.isnan(value) else float(value) for value in values]
    return made, prompt, torch.from_numpy(rel), torch.from_numpy(attention)


def ends_of(case):
    """The places of the tokens that rank first."""
    made, prompt, *_ = case
    return [place for place, token in enumerate(made["input_ids"]) if place >= prompt and token == 2]


def expected_selection(case, ratio, gamma, *, ends, has_rel=True):
    made, prompt, rel, attention = case
    sample = torch.zeros(len(rel), dtype=torch.int64)
    scaled = selection.normalise(rel, sample, 1) if has_rel else torch.zeros(len(rel))
    score = selection.blend(scaled, attention, gamma, torch.full_like(sample, prompt > 0, dtype=torch.bool))
    first = torch.tensor(made["input_ids"][prompt:]) == 2
    kept = selection.kept_per_sample(torch.tensor([len(rel)]), ratio, first.sum()[None] if ends else None)
    chosen = selection.keep_top(score, sample, kept, first if ends else None)
    return "".join(str(int(there)) for there in chosen)


@pytest.mark.parametrize("ends", [True, False])
def test_what_if_selects_exactly_as_training_does(browser, ends):
    cases = [random_case(seed) for seed in range(60)]
    browser.open(report(moment([case[0] for case in cases]), ends=[ends_of(case) for case in cases] if ends else []))
    recorded = ["".join(str(int(there)) for there in case[0]["selected"][case[1] :]) for case in cases]
    assert browser.kept() == recorded
    for ratio, gamma in [
        (0.6, 0.5),
        (0.4, 0.8),
        (0.07, 0.3),
        (0.55, 0.0),
        (0.29, 1.0),
        (1.0, 0.5),
        (0.5, 0.6),
        (0.35, 0.34),
    ]:
        browser.set("ratio", ratio)
        browser.set("gamma", gamma)
        expected = [expected_selection(case, ratio, gamma, ends=ends) for case in cases]
        assert browser.kept() == expected, (ratio, gamma)
    changed = sum(a != b for a, b in zip(recorded[3], expected[3], strict=True))
    assert browser.texts(".change")[3] == (
        f"What if ratio 0.35, gamma 0.34: keeps {expected[3].count('1')} of {len(expected[3])}; "
        f"{changed} token{'s' * (changed != 1)} change{'s' * (changed == 1)} in this sample"
    )
    browser.click("#reset")
    assert browser.kept() == recorded


def test_what_if_without_rel_is_attention_alone(browser):
    cases = [random_case(seed) for seed in range(1, 7)]
    for made, *_ in cases:
        made["rel"] = [None] * len(made["rel"])
    browser.open(report(moment([case[0] for case in cases]), ends=[ends_of(case) for case in cases]))
    browser.set("gamma", 0.3)
    assert browser.kept() == [expected_selection(case, 0.6, 0.3, ends=True, has_rel=False) for case in cases]
    assert "REL was not measured" in browser.text("#empty")
    browser.click(".response .t")
    assert numbers_of(browser)["REL"] == "not measured"


def test_what_if_says_where_no_blend_ranked(browser):
    browser.open(report(moment([drawn(10, 1)], rule="random", gamma=0.0), settings={"gamma": 0.8, "ratio": 0.6}))
    assert "The training ranked by chance" in browser.text("#what-if-note")
    assert browser.text("#gamma-value") == "0.8"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("sstoken", "0.25 \u00d7 REL + 0.75 \u00d7 prompt attention; 60\u00a0% of each response was kept"),
        ("rel", "REL; 60\u00a0% of each response was kept"),
        ("attention", "prompt attention; 60\u00a0% of each response was kept"),
        ("random", "chance; 60\u00a0% of each response was kept"),
        ("position", "position, first tokens first; 60\u00a0% of each response was kept"),
        ("reference", "the excess loss against the reference model; 60\u00a0% of each response was kept"),
        ("lowest_base_loss", "their loss under the history, lowest first; 60\u00a0% of each response was kept"),
        ("probability", "their probability, highest first; 60\u00a0% of each response was kept"),
        ("threshold", "their probability: those with 0.125 or more were kept, and the ends of turns"),
        ("all", "nothing: every response token was kept"),
        ("gone since", "gone since; 60\u00a0% of each response was kept"),
    ],
)
def test_it_says_what_ranked_and_where_what_if_begins(browser, rule, words):
    settings = {"gamma": 0.8, "ratio": 0.4, "min_probability": 0.125}
    browser.open(report(moment([drawn(10, 1)], rule=rule, gamma=0.25), settings=settings))
    assert browser.text("#rule") == f"step 3: tokens were ranked by {words}."
    blends = rule in ("sstoken", "rel", "attention")
    assert ("what-if ranks by gamma" in browser.text("#what-if-note")) is not blends
    assert ("keeps a share" in browser.text("#what-if-note")) == (rule in ("all", "threshold"))
    assert browser.text("#gamma-value") == ("0.25" if blends else "0.8")
    assert browser.text("#ratio-value") == ("0.4" if rule in ("all", "threshold") else "0.6")
    assert browser.errors() == []


def test_what_if_is_off_for_a_response_too_long(browser):
    browser.open(report(moment([drawn(9000, 1), drawn(20, 2)])))
    assert "What-if is off for this sample: its response has 9,000 tokens" in browser.text(".sample")
    before = browser.kept()
    browser.set("ratio", 0.1)
    after = browser.kept()
    assert after[0] == before[0]
    assert after[1].count("1") == 2
    assert "Cut here: 812 more tokens" in browser.text(".sample .text")


def test_curves_are_drawn_and_read_out(browser):
    browser.open(full_report())
    titles = browser.texts("#charts figcaption")
    assert titles == [
        "Training loss", "Evaluation loss", "Loss on kept and on dropped tokens", "Mean REL", "sstoken/other",
    ]  # fmt: skip
    assert browser.texts("#charts figure:nth-of-type(-n+2) .chart-legend > span:first-child") == [
        " over kept tokens 0.1", " over all response tokens 1.25",
    ]  # fmt: skip
    assert "Near 0 it is noise." in browser.text("#charts")
    pair = "#charts figure:nth-of-type(3) "
    assert browser.text(pair + ".chart-legend").split() == ["kept", "0.05", "dropped", "0.15", "step", "20"]
    browser.run("document.querySelector(arguments[0]).focus()", pair + "> svg")
    for _ in range(2):
        browser.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert browser.text(pair + ".step") == "step 18"
    browser.run(
        "const svg = document.querySelector(arguments[0]); const box = svg.getBoundingClientRect();"
        "svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width * 48 / 380}))",
        pair + "> svg",
    )
    assert browser.text(pair + ".chart-legend").split() == ["kept", "1", "dropped", "3", "step", "1"]
    ticks = browser.run("return [...document.querySelectorAll(arguments[0])].map(t => t.textContent)", pair + ".tick")
    assert {"0", "1", "2", "3", "5", "20"} <= set(ticks)


def test_each_of_several_evaluation_sets_has_its_chart_and_its_note(browser):
    log = [{"step": step, "loss": 1.0, "eval_math_loss": 2 / step, "eval_<b>_loss": 3.0, "memory": step}
           for step in range(1, 5)]  # fmt: skip
    browser.open(report(drawn(10, 1), log=log))
    assert browser.texts("#charts figcaption") == [
        "Training loss", "Evaluation loss on math", "Evaluation loss on <b>",
    ]  # fmt: skip
    chart = browser.text("#charts figure:nth-of-type(2)")
    assert "over all response tokens 0.5" in chart
    assert "mean loss of all response tokens, kept or not, of the evaluation data" in chart
    browser.click("#more-charts > summary")
    assert browser.texts("#more-charts figcaption") == ["memory"]


@pytest.mark.parametrize(
    ("settings", "legend", "note"),
    [
        (
            {"selector": "sstoken"},
            "over kept tokens",
            "mean loss of the tokens that were trained on: it compares neither",
        ),
        (
            {"selector": "threshold"},
            "of kept tokens, per response token",
            "sum of the losses of kept tokens, over the number of all response tokens: it compares neither",
        ),
        ({"selector": "all"}, "over all response tokens", "mean loss of all response tokens, as in plain training"),
        ({"ratio": 1.0}, "over all response tokens", "mean loss of all response tokens, as in plain training"),
    ],
    ids=str,
)
def test_it_says_over_which_tokens_the_training_loss_is(browser, settings, legend, note):
    rule = settings.get("selector", "sstoken")
    browser.open(report(moment([drawn(10, 1)], rule=rule), settings=settings, log=LOG))
    chart = browser.text("#charts figure:first-child")
    assert f" {legend} 0.1" in chart
    assert note in chart
    assert ("compares neither" in chart) == ("compares neither" in note)


@pytest.mark.parametrize(("rule", "words"), [("sstoken", " after the warm-up"), ("all", "")])
def test_tables_say_whether_they_leave_out_the_warm_up(browser, rule, words):
    tables = [Breakdown("By turn", "", [("turn 1", 100, 80)], rule)]
    settings = {"selector": "sstoken", "warmup_ratio": 0.2}
    browser.open(report(moment([drawn(10, 1)], rule=rule), settings=settings, log=LOG, breakdowns=tables))
    assert browser.text("#tables-note") == f"In all the data that was trained on{words}:"


def test_histograms_tell_kept_from_dropped_and_how_far_one_cut_would_agree(browser):
    records = [drawn(400, seed, sample=seed) for seed in range(5)]
    browser.open(report(moment(records)))
    labels = "return [...document.querySelectorAll('#histograms svg[role=img]')].map(n => n.getAttribute('aria-label'))"

    def expect(chosen):
        for label, name in zip(browser.run(labels), ("rel", "attention", "score"), strict=True):
            values = np.concatenate([one[name][4:] for one in records])
            alike = max(
                float(np.mean((values >= cut) == chosen)) for cut in np.linspace(values.min(), values.max(), 2000)
            )
            words = re.search(r"alone would choose (\d+)\xa0% of these", label)
            found = int(words[1]) / 100 if words else max(chosen.mean(), 1 - chosen.mean())
            assert found == pytest.approx(alike, abs=0.02), label
            assert f"{int(chosen.sum()):,} kept tokens, median {np.median(values[chosen]):.1f}"[:-1] in label

    kept = np.concatenate([one["selected"][4:] for one in records])
    expect(kept)
    drawn_bars = "return [...document.querySelectorAll('#histograms figure:first-child .bar-kept')].length"
    assert browser.run(drawn_bars) > 20
    # By another rule other tokens are kept.
    browser.set("ratio", 0.3)
    expect(np.array([mark == "1" for marks in browser.kept() for mark in marks]))


def test_a_histogram_says_what_its_last_bars_hold_from_beyond_them(browser):
    made = drawn(1000, 1)
    made["rel"][4:7] = [-900.0, -900.0, 800.0]
    browser.open(report(made))
    notes = browser.texts("#histograms figure > .note")
    kept, values = np.array(made["selected"][4:]), np.sort(np.array(made["rel"][4:], dtype="f4"))
    low, high = values[5], values[994]
    beyond = int(((values < low) | (values > high)).sum())
    assert beyond == 10
    assert notes[0].endswith("The bars at the ends hold 10 tokens from beyond them.")
    # All tokens are drawn.
    heights = browser.run("""
        const chart = document.querySelector("#histograms figure");
        return [...chart.querySelectorAll(".bar-kept")].map((bar) => Number(bar.getAttribute("height")))
    """)
    assert len(heights) > 20
    assert f"{kept.sum():,} kept tokens" in browser.run(
        "return document.querySelector('#histograms svg[role=img]').getAttribute('aria-label')"
    )
    browser.open(report(drawn(30, 1)))
    assert not any("beyond" in note for note in browser.texts("#histograms figure > .note"))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_the_axis_of_a_short_run_has_whole_steps_alone(browser, count):
    browser.open(report(drawn(10, 1), log=LOG[:count]))
    ticks = browser.run("""
        const chart = document.querySelector("#charts figure");
        return [...chart.querySelectorAll(".tick[text-anchor=middle]")].map((tick) => tick.textContent);
    """)
    assert len(ticks) >= 2
    assert all(tick.isdigit() for tick in ticks), ticks


def test_too_few_points_make_no_curve(browser):
    browser.open(report(drawn(10, 1), log=[{"step": 1, "loss": 2.0}]))
    assert browser.texts("#training") == []


def test_tables_show_shares_and_sort(browser):
    browser.open(full_report())
    rows = ".breakdown:first-child tbody tr"
    assert browser.texts(rows) == ["turn 110080\u00a0%", "turn 25020\u00a0%"]
    assert "Overall 60\u00a0% were kept" in browser.text(".breakdown:first-child")
    browser.click(".breakdown:first-child thead th:nth-child(3) button")
    browser.click(".breakdown:first-child thead th:nth-child(3) button")
    assert browser.texts(rows) == ["turn 25020\u00a0%", "turn 110080\u00a0%"]
    long = ".breakdown:nth-child(2) "
    assert browser.texts(long + ".ends h4") == [
        "Most kept of the 50 seen at least 20 times", "Most dropped of the 50 seen at least 20 times",
    ]  # fmt: skip
    assert len(browser.texts(long + ".ends tbody tr")) == 30
    # White space in a label can be seen.
    assert browser.texts(long + ".ends tbody th")[0] == "␣word 58↵"
    browser.click(long + "summary")
    assert len(browser.texts(long + "details tbody tr")) == 60


def test_shares_read_as_in_the_verdict_and_none_is_rounded_to_all_or_nothing(browser):
    counts = [(seen, kept) for seen in (1, 2, 7, 40, 200, 999) for kept in range(0, seen + 1, max(seen // 40, 1))]
    counts += [(seen, kept) for seen in (4100, 10**6, 2**50) for kept in (1, 16, seen - 16, seen - 1)]
    rows = [(f"row {place}", seen, kept) for place, (seen, kept) in enumerate(counts)]
    browser.open(report(breakdowns=[Breakdown("By text", "", rows)]))
    browser.click(".breakdown summary")
    shown = browser.texts(".breakdown details td:last-child span:last-child")
    assert shown == [percent(kept / seen, space="\u00a0") for seen, kept in counts]
    for (seen, kept), text in zip(counts, shown, strict=True):
        assert (text == "0\u00a0%") == (kept == 0), (seen, kept)
        assert (text == "100\u00a0%") == (kept == seen), (seen, kept)
    assert {"0.4\u00a0%", "99.6\u00a0%", "99.9999\u00a0%"} <= set(shown)


# Two words that a joiner of no width keeps apart.
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
HOSTILE = {
    "<!--<script </script x": "<!--<script </script x",
    "<script>window.pwned = 1</script>": "<script>window.pwned = 1</script>",
    "</script><img src=x onerror='window.pwned = 1'>": "</script><img src=x onerror='window.pwned = 1'>",
    "&lt;": "&lt;",
    "a\x00b\x1b[31m\x7f": "a␀b␛[31m␡",
    "\r\x85": "␍[U+0085]",
    "x\u202eevil\u2066": "x[U+202E]evil[U+2066]",
    "zero\u200bwidth\ufeff\u2060": "zero[U+200B]width[U+FEFF][U+2060]",
    "\ud800": "[U+D800]",
    "\u2028\ue000\U000e0041": "[U+2028][U+E000][U+E0041]",
    "l\u200doose": "l[U+200D]oose",
    # What joins as it should stays as it is.
    "👩\u200d👩\u200d👧": "👩\u200d👩\u200d👧",
    PERSIAN: PERSIAN,
    "e\u0301": "e\u0301",
    "line\nbreak\ttab": "line\nbreak\ttab",
    "y" * 10_000: "y" * 300 + "[... 9700 more characters]",
}


def test_hostile_text_is_shown_as_text(browser):
    browser.open(report(record(["<b>prompt</b>\x00", *HOSTILE, ""]), sentence="<b>", ends=[]), 360)
    assert browser.run("return [...document.querySelectorAll('.response .t')].map(t => t.textContent)") == [
        *HOSTILE.values(), "",
    ]  # fmt: skip
    assert {"[U+202E]", "[U+200B]", "␛"} <= set(browser.texts(".response .mark"))
    assert browser.text(".prompt .turn") == "<b>prompt</b>␀"
    assert browser.run("return [window.pwned ?? null, document.images.length, document.scripts.length]") == [None, 0, 2]
    for place in range(len(HOSTILE)):
        browser.run("document.querySelectorAll('.response .t')[arguments[0]].focus()", place)
    assert browser.run("return window.pwned ?? null") is None
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    assert browser.errors() == []


def test_what_is_said_of_a_run_is_text_too(browser):
    attack = "`<img src=x onerror='window.pwned = 1'>` \u202e </script><script>window.pwned = 1</script>"
    tables = [Breakdown(KINDS, attack, [(attack, 100, 1), ("words", 100, 90)])]
    made = moment([record(["p", attack, "b"], sample=0), record(["p", "a"], sample=1)], label=attack, rule=attack)
    browser.open(
        report(made, made, sentence=attack, facts={attack: attack, "data": attack}, settings={attack: attack},
               versions={attack: attack}, history=attack, warnings=[attack], compare=attack, breakdowns=tables,
               log=[{"step": step, "loss": step, attack: step} for step in (1, 2)], notes={attack: attack})
    )  # fmt: skip
    browser.run("for (const node of document.querySelectorAll('details')) node.open = true")
    browser.run("location.hash = '#sample-' + arguments[0]", attack)
    browser.driver.find_element("id", "search").send_keys("<img src=x")
    browser.wait_for("#found", "1 time in 1 sample")
    assert browser.texts(".finding.warning code") == ["<img src=x onerror='window.pwned = 1'>"]
    assert "[U+202E]" in browser.text(".finding.warning li")
    assert browser.run("return [window.pwned ?? null, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert browser.errors() == []


def test_letters_join_and_lines_turn_as_if_there_were_no_tokens(browser):
    # "Capital of Thailand" in Arabic.
    text = "\u0639\u0627\u0635\u0645\u0629 \u062a\u0627\u064a\u0644\u0627\u0646\u062f"
    whole = report(record(["user\n", text]))
    browser.open(whole)
    width = (
        "const range = document.createRange(); range.selectNodeContents(document.querySelector('.response .turn'));"
        "return range.getBoundingClientRect().width"
    )
    expected = browser.run(width)
    # Cut inside words, where letters join.
    browser.open(report(record(["user\n", text[:3], text[3:8], text[8:11], text[11:]])))
    assert browser.run(width) == pytest.approx(expected, abs=0.5)
    lefts = browser.run(
        "return [...document.querySelectorAll('.response .t')].map(t => t.getBoundingClientRect().left)"
    )
    assert lefts == sorted(lefts, reverse=True)
    # The line starts at the right.
    right = "return document.querySelector(arguments[0]).getBoundingClientRect().right"
    assert browser.run(right, ".response .t") == browser.run(right, ".response .turn")


@pytest.mark.parametrize(
    ("empty", "text"),
    [
        (report(), "No sample was scored"),
        (report(moment([])), "No sample was scored"),
        (report(record([])), "This sample has no response tokens"),
        (report(record(["p", "q"], prompt=2)), "This sample has no response tokens"),
        (report(record(["p", "q"], rel=[None] * 2, score=[None] * 2)), "REL was not measured"),
        (report(record(["p", "q"], attention=[None] * 2)), "Attention on the prompt was not measured"),
    ],
)
def test_it_says_what_there_is_none_of(browser, empty, text):
    browser.open(empty)
    assert text in browser.text("#samples")
    assert browser.errors() == []


def test_a_phone_shows_numbers_at_the_bottom_and_the_token_above_them(browser):
    browser.open(full_report(), 360, 640)
    assert browser.texts("#readout") == []
    browser.run("""
        const last = [...document.querySelectorAll(".sample:first-child .t")].at(-1);
        last.scrollIntoView({block: "end", behavior: "instant"});
        last.focus({preventScroll: true});
    """)
    browser.settle()
    token, sheet = browser.run(
        "return [document.activeElement, document.getElementById('readout')]"
        ".map(n => n.getBoundingClientRect().toJSON())"
    )
    assert sheet["bottom"] == pytest.approx(640)
    assert token["bottom"] <= sheet["top"]
    browser.click("#readout-close")
    assert browser.texts("#readout") == []
