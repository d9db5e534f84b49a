"""Every token has its text, and all of them joined are the text of the sample."""

import pytest

from sstoken_plugin.token_text import token_texts
from sstoken_plugin.visible_text import visible

TEXTS = [
    "Plain words, and 12 numbers.\n\n    indented\ttab",
    "An emoji of many tokens: 🧑‍🚀 and 🏴󠁧󠁢󠁳󠁣󠁴󠁿, then text.",
    "مرحبا بالعالم — שלום — 你好世界 — Ελλάδα",
    "𓀀𓀁𓀂",
    "<|im_start|>user\nhi<|im_end|>",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_join_to_the_whole(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "\ufffd" not in "".join(texts)


def test_a_character_that_several_tokens_make_up_is_the_text_of_the_first(tokenizer):
    ids = tokenizer("a🧿b", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    assert token_texts(tokenizer, ids) == ["a", "🧿", *[""] * (len(ids) - 3), "b"]


def test_bytes_that_are_no_character_do_not_swallow_what_follows(tokenizer):
    ids = tokenizer("x🧿y word", add_special_tokens=False)["input_ids"]
    broken = [ids[0], ids[1], *ids[-2:]]
    texts = token_texts(tokenizer, broken)
    assert len(texts) == len(broken)
    assert texts[-1] == " word"


def test_what_acts_or_hides_is_shown():
    assert visible("a\x1b[31m\u202eb\x00\u2028\ud800") == "a␛[31m[U+202E]b␀[U+2028][U+D800]"
    assert visible("نص 🧑‍🚀\n") == "نص 🧑‍🚀\n"
