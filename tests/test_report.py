"""The report page shows text as text, whatever the text is."""

from html.parser import HTMLParser

from sstoken_plugin.report import MAX_TOKENS, render


def record(tokens, prompt=1):
    response = [place >= prompt for place in range(len(tokens))]
    numbers = [0.5 if there else None for there in response]
    names = ("current_nll", "history_nll", "rel", "attention", "score")
    return {
        "sample": 0,
        "input_ids": list(range(len(tokens))),
        "tokens": tokens,
        "response": response,
        "selected": [there and place % 2 == 0 for place, there in enumerate(response)],
        **{name: list(numbers) for name in names},
    }


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_markup_in_samples_and_settings_stays_text():
    hostile = ["hi", "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</div></html>", "&lt;"]
    page = Page(render([record(hostile)], "a <b>sentence</b>", {"history": "<i>"}, warnings=["<u>"]))
    assert not {"script", "img", "b", "i", "u"} & {tag for tag, _ in page.tags}
    for text in (*hostile, "a <b>sentence</b>", "<i>", "<u>"):
        assert text in page.text


def test_control_and_direction_characters_are_made_visible():
    text = Page(render([record(["p", "a\x00b", "x\u202eevil", "\x1b[31m", "line\nbreak"])], "", {})).text
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "[U+202E]" in text
    assert "␛[31m" in text
    assert "line\nbreak" in text


def test_kept_and_dropped_tokens_are_told_apart():
    page = Page(render([record(["p", "one", "two", "three"])], "", {}))
    kinds = [attrs["class"] for tag, attrs in page.tags if tag == "span" and "title" in attrs]
    assert kinds == ["dropped", "kept", "dropped"]


def test_long_samples_are_cut_visibly():
    page = render([record(["word "] * (MAX_TOKENS + 7))], "", {})
    assert "Cut here: 7 more tokens" in page


def test_the_page_asks_the_network_for_nothing():
    log = [{"step": step, "loss": 1.0 / step, "sstoken/rel_mean": step} for step in (1, 2, 3)]
    page = Page(render([record(["p", "a"])], "", {}, log))
    assert not any(name in attrs for _, attrs in page.tags for name in ("src", "href"))
    assert sum(tag == "polyline" for tag, _ in page.tags) == 2
