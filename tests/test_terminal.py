"""What the inspector prints of a sample."""

import click

from sstoken_plugin.terminal import MOST_TOKENS, SHADES, agreement, view


def record(tokens, prompt, selected):
    response = [place >= prompt for place in range(len(tokens))]
    return {
        "sample": 7,
        "tokens": tokens,
        "response": response,
        "score": [place / len(tokens) if there else None for place, there in enumerate(response)],
        "selected": [place in selected for place in range(len(tokens))],
    }


def test_kept_tokens_are_shaded_by_score_and_dropped_ones_struck_out():
    head, text = view(record(["ask ", "one", " two", " three"], 1, {1, 3}))
    assert click.unstyle(head) == "sample 7: 2 of 3 response tokens kept"
    low, high = (click.style(word, bg=shade, fg=16) for word, shade in (("one", SHADES[0]), (" three", SHADES[-1])))
    assert text == f"ask {low}{click.style(' two', dim=True, strikethrough=True)}{high}"


def test_text_cannot_act_on_the_terminal():
    _, text = view(record(["\x1b[2J", "\u202eevil", "\r\x07", "a\nb"], 1, {1, 2, 3}))
    plain = click.unstyle(text)
    assert not any(sign in plain for sign in ("\x1b", "\u202e", "\r", "\x07"))
    assert plain == "␛[2J[U+202E]evil␍␇a⏎\nb"
    # No colour goes on over a line break.
    assert all(line.count("\x1b[0m") >= line.count("\x1b[48") for line in text.split("\n"))


def test_long_samples_are_cut_visibly_with_the_response_in_sight():
    lines = [click.unstyle(line) for line in view(record(["w "] * 5000, 3000, {3000}))]
    assert lines[1] == f"[{3000 - MOST_TOKENS // 3} tokens before]"
    assert lines[-1] == f"[{5000 - 3000 - MOST_TOKENS + MOST_TOKENS // 3} tokens more]"


def test_a_sample_without_scores_or_response_is_shown():
    assert len(list(view(record(["only", " prompt"], 2, set())))) == 2
    constant = record(["a", "b", "c"], 0, {0})
    constant["score"] = [0.0, None, 0.0]
    assert len(list(view(constant))) == 2


def test_agreement():
    one, other = record(["a"] * 4, 0, {0, 1}), record(["a"] * 4, 0, {1, 2})
    assert agreement([one], [other]).startswith("Of the tokens that either keeps both keep 33% (1 of 3); 2 tokens")
    assert "(0 of 0)" in agreement([record([], 0, set())], [record([], 0, set())])
