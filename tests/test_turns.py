"""Which tokens end a turn, where turns begin, and what short answers keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from material import chat
from test_samples import batch_of, packed, padded

from sstoken_plugin.axolotl.run import run_of
from sstoken_plugin.engine.run import Run
from sstoken_plugin.report.inspection import ends_of_turns
from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.selection.scores import kept_per_sample
from sstoken_plugin.selection.turns import EndTokens, Turns
from sstoken_plugin.training.setup import end_tokens

END, NEWLINE = 2, 3
ENDS = EndTokens({END}, {NEWLINE})


def turns_of(batch, tokens=ENDS):
    layout = BatchLayout.of(batch)
    found = Turns.of(batch, layout, tokens)
    split = [part.tolist() for part in found.number.split(layout.lengths.tolist())]
    return split, (layout.position[found.ends]).tolist()


@pytest.mark.parametrize(
    ("sample", "numbers", "ends"),
    [
        # Negative tokens are not labelled.
        ([-5, -6, 7, 8, 2], [0, 0, 0], [4]),
        # The answer speaks of the token that ends it.
        ([-5, 2, 7, 2, 2, 8, 2], [0] * 6, [6]),
        # Cut by the length of a row, just behind such a mention.
        ([-5, 7, 2, 8], [0, 0, 0], []),
        # White space behind the end, labelled with it; white space alone is no end.
        ([-5, 7, 8, 2, 3], [0, 0, 0, 0], [3]),
        ([-5, 7, 3, 8, 3], [0, 0, 0, 0], []),
        # Two turns, with their ends labelled, and without.
        ([-5, 7, 2, -3, -6, 8, 9, 2], [0, 0, 1, 1, 1], [2, 7]),
        ([-5, 7, -2, -6, 8, 9, -2], [0, 1, 1], []),
        # Only the last end labelled (train_on_eos: last).
        ([-5, 7, -2, -6, 8, 2], [0, 1, 1], [5]),
        # Parts of one answer that are not trained on.
        ([-5, 7, -6, 8, -6, -6, 9, 2], [0, 0, 0, 0], [7]),
        ([-5, 7, -6, 8, -2], [0, 0], []),
        # Both at once.
        ([-5, 7, -6, 8, 2, -5, 9, -9, 9, 2], [0, 0, 0, 1, 1, 1], [4, 9]),
        # No end token anywhere: runs are all that shows.
        ([-5, 7, -6, 8, -6, 9], [0, 1, 2], []),
    ],
)
def test_a_turn_ends_with_its_last_labelled_token(sample, numbers, ends):
    assert turns_of(batch_of([sample])) == ([numbers], ends)


SAMPLES = [[-5, 7, 2, -6, 8, 2], [-5, 7, -6, 8, 2], [-5, 2, 7, -6, 8], [-5, 9, -6, 9]]
NUMBERS = [[0, 0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 1]]


@pytest.mark.parametrize("batch", [padded(SAMPLES, "right"), padded(SAMPLES, "left"), packed(SAMPLES)])
def test_turns_are_the_same_however_samples_stand(batch):
    numbers, ends = turns_of(batch)
    assert numbers == NUMBERS
    assert batch["input_ids"].flatten()[ends].tolist() == [END] * 3


def test_padding_with_the_end_token_ends_nothing():
    batch = padded([[-5, 7, -6, 8], [-5, 7, 8, 9, -6, 9, 9]], "right")
    batch["input_ids"][batch["attention_mask"] == 0] = END
    assert turns_of(batch) == ([[0, 1], [0, 0, 0, 1, 1]], [])


@pytest.mark.parametrize(
    ("length", "ends", "ratio", "kept"),
    [
        (2, 1, 0.5, 2),
        (3, 1, 0.3, 2),
        (1, 1, 0.5, 1),
        (8, 4, 0.5, 8),
        (20, 4, 0.2, 8),
        (100, 1, 0.5, 50),
        (9, 0, 0.1, 1),
    ],
)
def test_ends_take_half_of_the_places_at_most(length, ends, ratio, kept):
    assert kept_per_sample(torch.tensor([length]), ratio, torch.tensor([ends])).tolist() == [kept]


def test_the_page_marks_the_ends_of_labels_of_ones_own():
    record = {"input_ids": [5, 6, 7, 8], "response": [False, True, True, True]}
    assert ends_of_turns(record, ENDS) == []
    assert ends_of_turns({**record, "labels": [-100, 6, 7, 2]}, ENDS) == [3]
    assert ends_of_turns({**record, "input_ids": [5, 6, 7, 2]}, ENDS) == [3]


class Model:
    """As much of a model as declares the ends of turns."""

    def __init__(self, declared):
        self.generation_config = type("Generation", (), {"eos_token_id": declared})


def test_the_tokens_that_end_a_turn(tokenizer):
    def ids(declared=None, **cfg):
        return set(end_tokens(run_of(cfg), Model(declared), tokenizer).ids)

    own = {tokenizer.eos_token_id}
    assert ids() == own == {2}
    assert ids([0, 2]) == {0, 2}
    # Older than the tokenizer: an ordinary word there, or nothing.
    word = tokenizer.encode(" tree", add_special_tokens=False)[0]
    assert ids([2, word]) == ids([2, 60000]) == ids(-1) == own
    # As Axolotl finds them: what encodes to one token.
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert ids(eot_tokens=["\n"]) == {2, *newline}
    assert ids(eot_tokens=["<|im_start|>", "three words long"]) == {1, 2}


def test_a_tokenizer_without_an_end_ends_nothing(tokenizer):
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    assert not end_tokens(Run(""), Model(None), other).ids


def written(tmp_path, lines):
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return [{"path": str(file), "type": "chat_template", "field_messages": "messages"}]


def kept_texts(steps, tokenizer):
    return [tokenizer.convert_ids_to_tokens(step.layout.target[step.kept].tolist()) for step, _ in steps]


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_one_word_answers_teach_the_word(config, train, steps, tokenizer, tmp_path, packing):
    lines = [chat(f"Is {number} even?", "No" if number % 2 else "Yes") for number in range(16)]
    block = {"ratio": 0.5, "warmup_ratio": 0.0}
    run = train(
        {**config, "datasets": written(tmp_path, lines), "sample_packing": packing, "max_steps": 1, "sstoken": block}
    )
    for texts in kept_texts(steps, tokenizer):
        assert {"No", "Yes"} & set(texts)
        assert texts.count("<|im_end|>") == len(texts) / 2
    assert run.lines[0]["sstoken/selected_ratio"] == 1
    # What the loss is divided by counts these places too.
    kept = torch.cat([step.scores.current[step.kept] for step, _ in steps])
    assert run.losses[0] == pytest.approx(kept.mean().item(), abs=1e-4)


def test_where_only_ends_are_kept_a_warning_counts_them(config, train, tmp_path):
    lines = [chat(f"Is {number} even?", "No") for number in range(16)]
    block = {"selector": "random", "ratio": 0.5, "keep_eos": False}
    run = train({**config, "datasets": written(tmp_path, lines), "sstoken": block})
    (warning,) = [text for text in run.trainer.sstoken.warnings if "no word of it" in text]
    assert "sstoken.keep_eos" in warning
    assert "of 4 samples" in warning


@pytest.mark.parametrize("logging_steps", [1, 50])
def test_where_nothing_is_kept_a_warning_says_so_without_a_log_line_too(config, train, logging_steps):
    block = {"selector": "threshold", "min_probability": 0.999, "keep_eos": False, "warmup_ratio": 0.0}
    run = train({**config, "max_steps": 2, "logging_steps": logging_steps, "sstoken": block})
    (warning,) = run.trainer.sstoken.warnings
    assert "of 4 samples kept no token at all" in warning or "of 8 samples kept no token at all" in warning
    page = (Path(config["output_dir"]) / "sstoken" / "report.html").read_text()
    assert '"answer":"1 warning"' in page


def test_a_mention_of_the_end_is_not_kept_for_it(config, train, steps, tmp_path):
    mention = "A turn ends with <|im_end|> here, not <|im_end|> or <|im_end|> or <|im_end|>; a new one begins."
    block = {"selector": "position", "ratio": 0.2, "warmup_ratio": 0.0}
    lines = [chat(f"What ends turn {number}?", mention) for number in range(8)]
    run = train({**config, "datasets": written(tmp_path, lines), "max_steps": 1, "sstoken": block})
    assert run.lines[0]["sstoken/eos_selected"] == 1
    for step, _ in steps:
        assert step.turns.ends.sum() == len(step.layout.lengths)
        assert step.kept[step.turns.ends].all()
        assert (step.layout.target[step.kept] == END).sum() < step.kept.sum() / 2


def test_a_tokenizer_of_mistral_common_has_its_end(tmp_path):
    """One that comes with the package; its list of added tokens is none."""
    from importlib.resources import files

    from transformers.tokenization_mistral_common import MistralCommonBackend

    shutil.copy(str(files("mistral_common") / "data" / "tekken_240911.json"), tmp_path / "tekken.json")
    other = MistralCommonBackend.from_pretrained(tmp_path)
    assert set(end_tokens(Run(""), Model([2, 1005]), other).ids) == {other.eos_token_id}


BLANK_ENDS = ["", "\n", "\n\n", "\n\n\n", " \n", "  ", "    ", "\t", "\r\n", " \n \n"]


@pytest.mark.parametrize("blank", BLANK_ENDS, ids=repr)
def test_white_space_behind_the_end_of_a_turn_does_not_hide_it(tokenizer, blank):
    ids = tokenizer(f"Q yes it is<|im_end|>{blank}", add_special_tokens=False)["input_ids"]
    labels = [-100, *ids[1:]]
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
    tokens = end_tokens(Run(""), Model(None), tokenizer)
    layout = BatchLayout.of(batch)
    turns = Turns.of(batch, layout, tokens)
    assert layout.target[turns.ends].tolist() == [tokenizer.eos_token_id]
    words = tokenizer("yes it is", add_special_tokens=False)["input_ids"]
    assert not set(words) & set(tokens.blank)
