"""Every token has its text, and all of them joined are the text of the sample."""

import json
import random
import shutil
from pathlib import Path

import mistral_common
import pytest

from sstoken_plugin.base.visible_text import visible
from sstoken_plugin.report.token_text import LoneTokens, decode, token_texts

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


DATA = Path(mistral_common.__file__).parent / "data"
# Real ones that nobody here made: byte fallback as Llama 2 and Mistral 7B have it, through transformers and through
# mistral-common, and a byte-level one of mistral-common's.
OTHERS = ("byte fallback", "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "tekken_240911.json")


@pytest.fixture(scope="module", params=OTHERS)
def other_tokenizer(request, tmp_path_factory):
    from transformers import AutoTokenizer
    from transformers.tokenization_mistral_common import MistralCommonBackend

    if request.param != "byte fallback":
        return MistralCommonBackend(tokenizer_path=str(DATA / request.param))
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(DATA / "tokenizer.model.v1", folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", [*TEXTS[:-1], "Party 🎉🎊🥳 yes", "🎉" * 40 + " end", "  two  spaces ", "\ufffd a sign"]
)
def test_texts_join_to_the_whole_with_other_tokenizers(other_tokenizer, text):
    ids = [other_tokenizer.bos_token_id, *other_tokenizer.encode(text, add_special_tokens=False)]
    ids.append(other_tokenizer.eos_token_id)
    texts = token_texts(other_tokenizer, ids)
    assert "".join(texts) == decode(other_tokenizer, ids)
    assert "".join(texts[1:-1]).strip() == text.strip()
    assert texts[-1] == "</s>"
    # Where a text is, not only that it is there.
    if " end" in text:
        assert texts[-2] == " end"
    if text.startswith("Party"):
        assert [found.strip() for found in texts[1:-1] if found.strip()] == ["Party", "🎉", "🎊", "🥳", "yes"]


def test_whatever_ids_there_are_their_texts_join(other_tokenizer, tokenizer):
    numbers = random.Random(0)
    for own in (other_tokenizer, tokenizer):
        for _ in range(20):
            ids = [numbers.randrange(3, 30_000) for _ in range(50)]
            assert "".join(token_texts(own, ids)) == decode(own, ids)


def test_text_of_a_sample_is_text_with_mistral_common(other_tokenizer):
    ids = other_tokenizer.encode("Hello world, 你好 🎊", add_special_tokens=False)
    assert decode(other_tokenizer, ids).strip() == "Hello world, 你好 🎊"


def test_different_tokens_have_different_texts(other_tokenizer, tokenizer):
    for own in (other_tokenizer, tokenizer):
        ids = dict.fromkeys(own.encode("the end, the 你好 한국어 🎊", add_special_tokens=False))
        texts = list(map(LoneTokens(own).named, ids))
        if "tekken" not in str(vars(own)):
            assert len(set(texts)) == len(texts), texts
    assert LoneTokens(tokenizer).named(tokenizer("你")["input_ids"][0]) == "\\xe4\\xbd"
