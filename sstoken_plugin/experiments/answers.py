"""Greedy answers to held-out prompts: how many are the reference, how long they are, whether they end."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sstoken_plugin.axolotl.experiment import Trained
from sstoken_plugin.engine.modes import replaced, under_adapter
from sstoken_plugin.experiments.config import AnswersEvaluation
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.selection.samples import BatchLayout, samples_in


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that the data have.

    Attributes:
        prompt: token ids.
        reference: token ids.
    """

    prompt: list[int]
    reference: list[int]


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        ids: its tokens, without the one that ended it.
        ended: whether one did.
    """

    ids: list[int]
    ended: bool


def measure_answers(
    trained: Trained, rows: Iterable[Mapping[str, Any]], asked: AnswersEvaluation
) -> dict[str, Measure]:
    """Return exact match, length and the share of answers that ended, over one question a sample.

    Raises:
        ValueError: no sample has a prompt.
    """
    questions = list(questions_of(rows))
    if not questions:
        raise ValueError("datasets: no sample has a prompt and a response, so that there is nothing to answer.")
    answers = greedy(trained, questions, asked)

    # As an answer is cut: not every tokenizer takes the end of a turn for a special token.
    references = [_until_end(question.reference, trained.ends.ids) for question in questions]

    def text(answer: Answer) -> str:
        return proper(trained.tokenizer.decode(answer.ids, skip_special_tokens=True), asked.extract)

    matches = sum(text(answer) == text(reference) for answer, reference in zip(answers, references, strict=True))
    count = len(answers)
    return {
        "exact_match": Measure.of("exact_match", matches, count, "higher"),
        "answer_tokens": Measure.of("answer_tokens", sum(len(answer.ids) for answer in answers), count, None),
        "ended": Measure.of("ended", sum(answer.ended for answer in answers), count, None),
    }


def questions_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[Question]:
    """Yield the last turn of each sample with what stands before it; samples without a prompt are left out."""
    for row in rows:
        for sample in samples_in(row):
            places = BatchLayout.of(sample).position.tolist()
            ids = sample["input_ids"][0].tolist()
            begin = len(places) - 1
            while begin > 0 and places[begin - 1] == places[begin] - 1:
                begin -= 1
            if places and (sample["labels"][0, : places[begin]] < 0).any():
                yield Question(ids[: places[begin]], ids[places[begin] : places[-1] + 1])


def greedy(trained: Trained, questions: Sequence[Question], asked: AnswersEvaluation) -> list[Answer]:
    """Return the most likely continuation, token by token, of each prompt.

    Prompts are padded on the left, and those of like length go together; the answers are those of each prompt alone.
    """
    from transformers import GenerationConfig

    model, tokenizer = trained.model, trained.tokenizer
    ends = sorted(trained.ends.ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    config = GenerationConfig(
        do_sample=False, max_new_tokens=asked.max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt))
    answers: dict[int, Answer] = {}
    for first in range(0, len(order), asked.batch_size):
        chosen = order[first : first + asked.batch_size]
        prompts = [questions[index].prompt for index in chosen]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device
        )
        # In place of its own, which may sample or punish repetition and fills what an argument leaves out.
        with replaced(under_adapter(model), "generation_config", config), torch.inference_mode(), trained.precision():
            made = model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
        answers |= {index: _until_end(tokens, ends) for index, tokens in zip(chosen, made, strict=True)}
    return [answers[index] for index in range(len(questions))]


def _until_end(tokens: list[int], ends: Collection[int]) -> Answer:
    place = next((place for place, token in enumerate(tokens) if token in ends), None)
    return Answer(tokens, ended=False) if place is None else Answer(tokens[:place], ended=True)


def proper(text: str, extract: str | None) -> str:
    """Return the part of an answer that is compared: see `AnswersEvaluation.extract`; without a match, all of it."""
    found = list(re.finditer(extract, text)) if extract else []
    if not found:
        return text.strip()
    last = found[-1]
    return str(last[1] if last.re.groups and last[1] is not None else last[0]).strip()
