"""The report page as readers of all kinds come to it: what is on the first screen, search, links, keys, ears, paper."""

from __future__ import annotations

import numpy as np
import pytest
from reports import drawn, moment, record, report
from selenium.webdriver.common.keys import Keys
from test_report_page import full_report

# Above that many a page builds what is near the screen alone.
MANY_TOKENS = 20_000
LONG = 900


def long_report(samples=30):
    """More than `MANY_TOKENS`, the last sample with a word of its own at its end."""
    records = [drawn(LONG, seed, sample=10 * seed) for seed in range(samples)]
    records[-1]["tokens"][-1] = "needle"
    return report(moment(records))


@pytest.mark.parametrize(("width", "height"), [(1366, 768), (390, 844)])
def test_the_verdict_and_the_first_sample_are_on_the_first_screen(browser, width, height):
    browser.open(full_report(), width, height)
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    assert browser.run(bottom, "#verdict") < height
    assert browser.run(bottom, ".sample .response .t") < height


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("shade", ["score", "rel", "attention"])
def test_every_text_stands_out_from_its_ground(browser, dark, shade):
    made = full_report()
    made.moments[-1].records[0]["tokens"][5:8] = ["a\u200b", "\n", "\t"]
    browser.open(made, 1366, 768, dark=dark)
    browser.run(f"document.querySelector('[value={shade}]').click()")
    browser.run("for (const node of document.querySelectorAll('details')) node.open = true")
    browser.settle()
    assert browser.poor_contrasts() == []
    # What would be found is found.
    browser.run("document.body.style.color = '#888'")
    browser.run("document.querySelector('h1').style.color = document.body.style.backgroundColor = '#777'")
    assert any("What ssToken selected" in text for text in browser.poor_contrasts())


def test_a_screen_reader_hears_what_was_kept_and_what_was_dropped(browser):
    made = drawn(30, 1)
    made["tokens"][4:7] = [" Paris", "\n", ""]
    browser.open(report(made))
    heard = [name for name in browser.names() if name.endswith("(button)") and ("kept" in name or "dropped" in name)]
    words = ["kept" if there else "dropped" for there in made["selected"][4:]]
    # The first is the one whose numbers are on show.
    assert heard[0].startswith("Paris, rank ")
    assert heard[1:4] == [f"\u21b5, {words[1]} (button)", f"part of a character, {words[2]} (button)",
                          f"w7, {words[3]} (button)"]  # fmt: skip
    assert len(heard) == 30
    browser.set("ratio", 0.01)
    heard = [name for name in browser.names() if name.endswith("(button)")]
    assert (sum(", dropped" in name for name in heard), sum(", kept" in name for name in heard)) == (29, 1)


def test_search_finds_text_in_every_sample_wherever_it_is_folded(browser):
    browser.open(long_report())
    assert browser.run("return document.querySelectorAll('.t').length") < MANY_TOKENS
    search = browser.driver.find_element("id", "search")
    search.send_keys("NEEDLE")
    browser.wait_for("#found", "1 time in 1 sample")
    browser.wait_until("return CSS.highlights.get('found')?.size === 1")
    assert browser.texts(".sample h3") == ["Sample 290 #"]
    (range_,) = browser.run("return [...CSS.highlights.get('found')].map(r => r.toString())")
    assert range_ == "needle"
    search.send_keys("x")
    browser.wait_for("#found", "0 times in 0 samples")
    assert browser.texts(".sample") == []
    search.send_keys(Keys.BACKSPACE * 7)
    browser.wait_for("#found", "")
    assert len(browser.texts(".sample h3")) == 30


FOUND = "return [...(CSS.highlights.get('found') ?? [])].map((range) => range.toString())"


def search_for(browser, words):
    browser.run(
        "const node = document.getElementById('search'); node.value = arguments[0];"
        "node.dispatchEvent(new Event('input', {bubbles: true}))",
        words,
    )


def test_a_search_marks_what_an_earlier_one_had_hidden(browser):
    records = [record(["p", word, " and"], sample=place) for place, word in enumerate(["cats", "cat"])]
    browser.open(report(moment(records)))
    search_for(browser, "cats")
    browser.wait_for("#found", "1 time in 1 sample")
    browser.settle()
    search_for(browser, "cat")
    browser.wait_for("#found", "2 times in 2 samples")
    browser.wait_until("return CSS.highlights.get('found')?.size === 2")
    assert browser.run(FOUND) == ["cat", "cat"]


def test_letters_whose_lower_case_is_longer_are_found_where_they_stand(browser):
    made = record(["p", "\u0130stanbul ", "\u0130\u0130", " ends"])
    browser.open(report(moment([made, record(["p", "other"], sample=1)])))
    for words, marked in (("ends", "ends"), ("istanbul", "\u0130stanbul"), ("\u0130STANBUL", "\u0130stanbul")):
        search_for(browser, words)
        browser.wait_for("#found", "1 time in 1 sample")
        browser.wait_until("return CSS.highlights.get('found')?.size === 1")
        assert browser.run(FOUND) == [marked]
    assert browser.errors() == []
    # No letter but that one changes its length.
    longer = """
        const found = [];
        for (let code = 0; code < 0x110000; code++) {
          const text = String.fromCodePoint(code);
          if (text.toLowerCase().length !== text.length) found.push(code);
        }
        return found;
    """
    assert browser.run(longer) == [0x130]


def test_a_fault_in_marking_leaves_no_card_blank(browser):
    # Several of them are on the screen at once.
    browser.open(report(moment([drawn(40, seed, sample=seed) for seed in range(MANY_TOKENS // 40)])))
    browser.run("window.Highlight = class { constructor() { throw new Error('no marks') } }")
    search_for(browser, "w7 ")
    browser.wait_for("#found", "500 times in 500 samples")
    browser.run("document.querySelectorAll('.sample')[250].scrollIntoView({behavior: 'instant'})")
    near = """
        return [...document.querySelectorAll(".sample")].filter((node) => {
          const box = node.getBoundingClientRect();
          return box.bottom > 0 && box.top < innerHeight;
        }).every((node) => node.querySelector(".t"));
    """
    browser.wait_until(near)
    assert any("no marks" in error for error in browser.errors())


def test_samples_are_sorted_by_how_much_they_were_cut(browser):
    records = []
    for sample, (kept, losses) in enumerate(
        [(2, (9, 1, 1, 1)), (1, (1, 1, 1, 1)), (3, (1, 1, 1, 9)), (1, (9, 1, 1, 1))]
    ):
        made = record(list("pabcd"), sample=sample, current_nll=[None, *map(float, losses)])
        made["selected"] = [False] + [place < kept for place in range(4)]
        records.append(made)
    records.append(record(["p", "q"], prompt=2, sample=4))
    browser.open(report(moment(records)))

    def order(name):
        browser.run(
            "const node = document.getElementById('order'); node.value = arguments[0];"
            "node.dispatchEvent(new Event('change', {bubbles: true}))",
            name,
        )
        return [int(title.split()[1]) for title in browser.texts(".sample h3")]

    # One without a response is last, and equals stand as in the data.
    assert order("dropped") == [1, 3, 0, 2, 4]
    # Of their loss, 2/12, 3/4, 9/12 and 3/12.
    assert order("loss") == [1, 2, 3, 0, 4]
    assert order("data") == [0, 1, 2, 3, 4]


def test_a_link_leads_to_a_sample_and_a_token_however_far_away(browser):
    browser.open(long_report())
    browser.run("location.hash = 'sample-200-token-880'")
    browser.wait_until("return document.activeElement.matches('.t')")
    assert "Token 884 of 904, response token 880 of 900" in browser.text("#readout-body")
    assert browser.run("return document.activeElement.closest('.sample').id") == "sample-200"
    box = browser.run("return document.activeElement.getBoundingClientRect().toJSON()")
    assert 0 < box["top"] < box["bottom"] < 900
    # The token tells its own address.
    assert browser.run("return document.querySelector('#readout a').getAttribute('href')") == "#sample-200-token-880"
    # One that is not there leads to the sample, and one of no sample nowhere.
    browser.run("location.hash = 'sample-100-token-901'")
    browser.wait_until("return Math.abs(document.getElementById('sample-100').getBoundingClientRect().top) < 50")
    browser.run("location.hash = 'sample-7-token-1'")
    browser.run("location.hash = '%E0%A4%A'")
    browser.settle()
    assert browser.errors() == []


def test_a_long_response_is_opened_in_full_by_a_key(browser):
    browser.open(report(moment([drawn(LONG, 1)])))
    count = "return document.querySelectorAll('.t').length - document.querySelectorAll('.demo').length"
    assert browser.run(count) == 600
    button = browser.driver.find_element("css selector", ".response .unfold")
    assert button.text == "Show 300 more tokens"
    button.send_keys(Keys.ENTER)
    browser.settle()
    assert browser.run(count) == LONG
    # Reading goes on where it stopped.
    assert browser.run("return document.activeElement.place?.index") == 599
    made = drawn(LONG, 1)
    assert browser.kept() == ["".join(str(int(there)) for there in made["selected"][4:])]


def test_a_long_prompt_loses_its_middle_until_it_is_asked_for(browser):
    made = record(["word "] * 1000 + ["\U0001f389" * 200] + ["end "] * 40 + ["a"], prompt=1041)
    browser.open(report(made))
    shown = browser.text(".prompt .turn")
    assert "more characters" in shown
    assert "U+D83C" not in shown
    browser.click(".prompt .unfold")
    assert browser.text(".prompt .turn") == "".join(made["tokens"][:-1])


def test_paper_shows_what_the_screen_folds(browser):
    browser.open(report(moment([drawn(LONG, 1), drawn(LONG, 2)]), settings={"seed": 1}), 390, 844)
    browser.run("""
        window.addEventListener("beforeprint", () => {
          window.printed = [
            document.querySelectorAll("details:not([open])").length,
            ...[...document.querySelectorAll(".sample")].map((s) => s.querySelectorAll(".t.kept, .t.dropped").length),
          ];
        });
    """)
    browser.driver.execute_cdp_cmd("Page.printToPDF", {})
    assert browser.run("return window.printed") == [0, LONG, LONG]
    browser.wait_until("return document.querySelectorAll('details:not([open])').length > 0")


def test_a_picture_of_a_page_of_a_usual_size_has_every_sample(browser):
    records = [drawn(400, seed, sample=seed) for seed in range(12)]
    browser.open(report(moment(records)), 1366, 768)
    marked = "return [...document.querySelectorAll('.sample')].map(s => s.querySelectorAll('.t').length)"
    assert browser.run(marked) == [400] * 12


def test_a_page_of_many_samples_is_built_as_it_is_read(browser):
    browser.open(long_report(), 1366, 768)
    built = "return [...document.querySelectorAll('.sample')].map(s => s.querySelectorAll('.t').length > 0)"
    assert not all(browser.run(built))
    for sample in (10, 20, 29):
        browser.run("document.querySelectorAll('.sample')[arguments[0]].scrollIntoView({behavior: 'instant'})", sample)
        browser.wait_until(f"{built.replace('return ', 'return (')})[{sample}]")
    kept = browser.kept()
    assert kept == ["".join(str(int(there)) for there in drawn(LONG, seed)["selected"][4:]) for seed in range(30)]
    assert np.mean([len(marks) for marks in kept]) == LONG
