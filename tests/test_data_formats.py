"""Axolotl's data formats: what is prompt and what is response, and that every sample is scored as if alone.

Each sample is drawn as its text with what is trained on in «»; the drawings are written by hand.
"""

import json
from itertools import groupby

import pytest
import torch
from reference import assert_kept_by_the_rule, scored_samples

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n"
)


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def chat(*turns, **others):
    """A line of chat data; a third item of a turn says whether to train on it."""
    keys = ("role", "content", "train")
    return {"messages": [dict(zip(keys, turn, strict=False)) for turn in turns], **others}


CHAT = {"type": "chat_template", "field_messages": "messages"}
# Name: settings of the data set, a line of it, the drawing of the sample.
FORMATS = {
    "several turns": (
        CHAT,
        chat(("user", "Name a tree."), ("assistant", "Oak."), ("user", "Another?"), ("assistant", "Beech, say.")),
        SYSTEM + turn("user", "Name a tree.") + "<|im_start|>assistant\n«Oak.<|im_end|>»\n"
        + turn("user", "Another?") + "<|im_start|>assistant\n«Beech, say.<|im_end|>»\n",
    ),
    "tool calls": (
        CHAT,
        chat(
            ("system", "Tools: time()."), ("user", "How late is it?"), ("assistant", "<call>time()</call>"),
            ("tool", "12:30"), ("assistant", "Half past noon."),
        ),
        turn("system", "Tools: time().") + turn("user", "How late is it?")
        + "<|im_start|>assistant\n«<call>time()</call><|im_end|>»\n" + turn("tool", "12:30")
        + "<|im_start|>assistant\n«Half past noon.<|im_end|>»\n",
    ),
    "roles_to_train": (
        {**CHAT, "roles_to_train": ["user", "tool"]},
        chat(("user", "Count sheep."), ("assistant", "One, two."), ("tool", "There are 12 of them.")),
        SYSTEM + "<|im_start|>user\n«Count sheep.<|im_end|>»\n" + turn("assistant", "One, two.")
        + "<|im_start|>tool\n«There are 12 of them.<|im_end|>»\n",
    ),
    "train_on_eos: last": (
        {**CHAT, "train_on_eos": "last"},
        chat(("user", "Day or night?"), ("assistant", "It is night."), ("user", "Still?"), ("assistant", "Day now.")),
        SYSTEM + turn("user", "Day or night?") + "<|im_start|>assistant\n«It is night.»<|im_end|>\n"
        + turn("user", "Still?") + "<|im_start|>assistant\n«Day now.<|im_end|>»\n",
    ),
    "train_on_eos: none": (
        {**CHAT, "train_on_eos": "none"},
        chat(("user", "Name a bird."), ("assistant", "A robin sings.")),
        SYSTEM + turn("user", "Name a bird.") + "<|im_start|>assistant\n«A robin sings.»<|im_end|>\n",
    ),
    "train_on_eos: all": (
        {**CHAT, "train_on_eos": "all"},
        chat(("system", "Be brief."), ("user", "Name a fish."), ("assistant", "Carp it is.")),
        "<|im_start|>system\nBe brief.«<|im_end|>»\n<|im_start|>user\nName a fish.«<|im_end|>»\n"
        "<|im_start|>assistant\n«Carp it is.<|im_end|>»\n",
    ),
    "message_field_training": (
        {**CHAT, "message_field_training": "train"},
        chat(
            ("user", "Sum of 2 and 2?", False), ("assistant", "Five.", False), ("user", "Sure?", False),
            ("assistant", "Four, sorry.", True),
        ),
        SYSTEM + turn("user", "Sum of 2 and 2?") + turn("assistant", "Five.") + turn("user", "Sure?")
        + "<|im_start|>assistant\n«Four, sorry.<|im_end|>»\n",
    ),
    "other names": (
        {
            "type": "chat_template", "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
        },
        {"conversations": [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Rhine."}]},
        SYSTEM + turn("user", "Name a river.") + "<|im_start|>assistant\n«The Rhine.<|im_end|>»\n",
    ),
    "alpaca": (
        {"type": "alpaca"},
        {"instruction": "Turn it round.", "input": "abc", "output": "cba, of course"},
        ALPACA.format("Turn it round.", "abc") + "«cba, of course<|im_end|>»",
    ),
    "completion": (
        {"type": "completion"},
        {"text": "Once upon a time there was a plain text."},
        # The first token has nothing before it that could predict it.
        "Once« upon a time there was a plain text.<|im_end|>»",
    ),
    "input_output": (
        {"type": "input_output"},
        {
            "segments": [
                {"label": False, "text": "Q: more?\n"}, {"label": True, "text": "A: a little."},
                {"label": False, "text": "\nQ: enough?\n"}, {"label": True, "text": "A: yes.<|im_end|>"},
            ]
        },
        "Q: more?\n«A: a little.»\nQ: enough?\n«A: yes.<|im_end|>»",
    ),
    "user-defined": (
        {"type": {"field_instruction": "ask", "field_output": "answer", "format": "[{instruction}] ",
                  "no_input_format": "[{instruction}] "}},
        {"ask": "Name a stone.", "answer": "Granite, or flint."},
        "[Name a stone.] «Granite, or flint.<|im_end|>»",
    ),
    "a strategy of one's own": (
        {"type": "house_style.question"},
        {"question": "Why is it dark", "reply": "Because it is night"},
        "Why is it dark? «Because it is night<|im_end|>»",
    ),
}  # fmt: skip
STRATEGY = """
from axolotl.prompt_tokenizers import PromptTokenizingStrategy

class Question(PromptTokenizingStrategy):
    def tokenize_prompt(self, line):
        prompt, reply = (self.tokenizer(line[key] + end, add_special_tokens=False)["input_ids"]
                         for key, end in (("question", "?"), ("reply", self.tokenizer.eos_token)))
        space = self.tokenizer(" ", add_special_tokens=False)["input_ids"]
        prompt = prompt + space
        return {"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply,
                "attention_mask": [1] * len(prompt + reply)}

def load(tokenizer, cfg, ds_cfg=None):
    return Question(None, tokenizer, cfg.train_on_inputs, cfg.sequence_len)
"""


@pytest.fixture
def every_format(config, tmp_path, monkeypatch):
    """One run over a data set of each format, each token in one epoch."""
    (tmp_path / "house_style").mkdir()
    (tmp_path / "house_style" / "question.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(tmp_path)
    sources = []
    for number, (settings, line, _) in enumerate(FORMATS.values()):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(json.dumps(line))
        sources.append({"path": str(file), **settings})
    return {**config, "datasets": sources, "max_steps": 0, "num_epochs": 1, "gradient_accumulation_steps": 1}


def drawing(tokenizer, ids, response):
    trained = set(response)
    parts = []
    for is_response, group in groupby(range(len(ids)), lambda i: i in trained):
        text = tokenizer.decode([ids[i] for i in group])
        parts.append(f"«{text}»" if is_response else text)
    return "".join(parts)


def drawn(steps, tokenizer):
    """Return what was kept of each sample, by its drawing."""
    return {
        drawing(tokenizer, ids, response): (steps[number][0], rows)
        for number, ids, response, _, rows in scored_samples(steps)
    }


def test_prompt_and_response_are_what_the_labels_say(every_format, train, steps, tokenizer):
    run = train({**every_format, "sstoken": {"warmup_ratio": 0.0, "report": False}})
    found = drawn(steps, tokenizer)
    assert set(found) == {picture for _, _, picture in FORMATS.values()}
    for picture, (step, rows) in found.items():
        assert_kept_by_the_rule(step, rows, run.trainer.sstoken.selection.config)
        assert step.layout.has_prompt[step.layout.sample[rows]].all() == (not picture.startswith("Once")), picture


def test_turns_end_where_the_labels_end(every_format, train, steps, tokenizer):
    train({**every_format, "sstoken": {"ratio": 0.1, "report": False}})
    for picture, (step, rows) in drawn(steps, tokenizer).items():
        assert int(step.turns.ends[rows].sum()) == picture.count("<|im_end|>»"), picture


def test_train_on_inputs_makes_prompts_part_of_the_response(every_format, train, steps, tokenizer):
    train({**every_format, "train_on_inputs": True, "sstoken": {"report": False}})
    found = drawn(steps, tokenizer)
    several_turns = FORMATS["several turns"][2]
    for text in ("Name a tree.<|im_end|>", "Another?<|im_end|>"):
        several_turns = several_turns.replace(text, f"«{text}»")
    assert several_turns in found
    assert "Below« is" + FORMATS["alpaca"][2].removeprefix("Below is").replace("«", "") in found


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_packed_rows_keep_the_tokens_of_unpacked_rows(every_format, train, steps, tokenizer, trained_adapter, kernel):
    """REL counts: the history is an adapter, and the learning rate is 0, so that the order of samples does not."""

    def scored(**changes):
        steps.clear()
        block = {"history": trained_adapter, "warmup_ratio": 0.0, "report": False}
        changes = {"attn_implementation": kernel, "learning_rate": 0.0, **changes}
        train({**every_format, **changes, "sstoken": block})
        return drawn(steps, tokenizer)

    alone = scored(micro_batch_size=1)
    assert len(alone) == len(FORMATS)
    for changes in (
        {"sample_packing": True, "pad_to_sequence_len": True},
        {"sample_packing": True, "pad_to_sequence_len": False, "micro_batch_size": 2},
        {"pad_to_sequence_len": True, "micro_batch_size": 4},
    ):
        together = scored(**changes)
        assert together.keys() == alone.keys()
        for picture, (step, rows) in together.items():
            expected, places = alone[picture]
            torch.testing.assert_close(step.scores.rel[rows], expected.scores.rel[places], atol=1e-4, rtol=0)
            assert step.kept[rows].tolist() == expected.kept[places].tolist(), picture
