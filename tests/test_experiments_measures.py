"""What is measured of a trained model: losses by kind of token, greedy answers, numbers of lm-evaluation-harness."""

import copy
import dataclasses
import functools
import json
import operator
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from sstoken_plugin.axolotl.experiment import Trained
from sstoken_plugin.experiments import losses, tasks
from sstoken_plugin.experiments.answers import Question, greedy, measure_answers, proper, questions_of
from sstoken_plugin.experiments.config import AnswersEvaluation, LossEvaluation, TasksEvaluation
from sstoken_plugin.experiments.evaluate import evaluate
from sstoken_plugin.experiments.kinds import ANSWER, END, KINDS, REASONING, is_reasoning, kinds
from sstoken_plugin.experiments.losses import measure_losses, token_losses
from sstoken_plugin.experiments.tasks import measure_tasks, measures_of, refuse_missing
from sstoken_plugin.selection.samples import as_batch
from sstoken_plugin.selection.turns import EndTokens


@pytest.fixture(scope="module")
def trained(tiny_llama, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ends = EndTokens(frozenset({tokenizer.eos_token_id}), frozenset({tokenizer.encode("\n")[0]}))
    return Trained(model, tokenizer, ends)


def row(tokenizer, *turns):
    """A row of a prepared data set: what is in pairs (prompt, response), as ChatML has it."""
    ids, labels = [], []
    for prompt, response in turns:
        asked = tokenizer.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
        said = tokenizer.encode(f"{response}<|im_end|>")
        ids += [*asked, *said]
        labels += [-100] * len(asked) + said
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


@pytest.fixture
def rows(tokenizer):
    return [
        row(tokenizer, ("Say red.", "red"), ("And a long word?", "a word that is so long that nothing else is")),
        row(tokenizer, ("Think.", "<think>\nblue or green\n</think>\n\nblue")),
        row(tokenizer, ("Say it all, please.", "green, and nothing but green")),
    ]


def test_a_loss_is_the_mean_over_all_response_tokens_of_all_rows(trained, rows, monkeypatch):
    total, count = 0.0, 0
    for each in rows:
        ids, labels = (torch.tensor(each[name])[None] for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = trained.model(ids).logits
        total += functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
        count += (labels[0, 1:] >= 0).sum().item()
    for tokens in (1, 64, 4096):
        monkeypatch.setattr(losses, "BATCH_TOKENS", tokens)
        found = measure_losses(trained, rows)
        assert found["loss"].value == pytest.approx(total / count, rel=1e-5)
        assert found["loss"].count == count
        parts = [found[f"loss_{kind}"] for kind in KINDS]
        assert sum(part.count for part in parts) == count
        assert sum(part.value * part.count for part in parts) == pytest.approx(total, rel=1e-5)
    assert found["loss_end_of_turn"].count == 4


def test_samples_of_a_packed_row_count_as_if_alone(trained, rows):
    alone = measure_losses(trained, rows[:2])
    packed = {
        "input_ids": rows[0]["input_ids"] + rows[1]["input_ids"],
        "labels": rows[0]["labels"] + rows[1]["labels"],
        "position_ids": [*range(len(rows[0]["input_ids"])), *range(len(rows[1]["input_ids"]))],
    }
    found = measure_losses(trained, [packed])
    assert found["loss"].value == pytest.approx(alone["loss"].value, rel=1e-5)
    assert {name: each.count for name, each in found.items()} == {name: each.count for name, each in alone.items()}


def test_losses_do_not_depend_on_an_adapter_that_does_nothing(trained, rows):
    before, _ = token_losses(trained, rows)
    adapter = get_peft_model(copy.deepcopy(trained.model), LoraConfig(target_modules="all-linear", lora_dropout=0.5))
    after, _ = token_losses(dataclasses.replace(trained, model=adapter.eval()), rows)
    assert torch.isfinite(before).all()
    assert not trained.model.training
    torch.testing.assert_close(after, before)


def test_every_response_token_has_its_kind(trained, tokenizer, rows):
    sample = as_batch(rows[1])
    found = kinds(sample, tokenizer, trained.ends)
    said = sample["labels"][0][sample["labels"][0] >= 0]
    by_kind = {kind: tokenizer.decode(said[found == kind]) for kind in (ANSWER, REASONING, END)}
    assert by_kind[END] == "<|im_end|>"
    assert by_kind[REASONING].startswith("<think>\nblue or green\n</think>")
    assert by_kind[ANSWER].strip() == "blue"


@pytest.mark.parametrize(
    ("pieces", "response", "marked"),
    [
        (["q", "<", "think", ">", "a", "</think>", "b"], [1, 2, 3, 4, 5, 6], "111110"),
        # Opened by the prompt, as some templates do.
        (["q", "<think>", "Ċ", "a", "</", "think>", "b"], [3, 4, 5, 6], "1110"),
        (["q", "<think>", "a"], [1, 2], "11"),
        (["<think>", "q", "a", "b"], [2, 3], "00"),
        (["q", "a", "<think>", "b", "</think>", "c", "<think>", "d", "</think>"], [1, 2, 3, 4, 5, 6, 7, 8], "01110111"),
        # What another turn left open is none of this one's.
        (["q", "<think>", "a", "q", "b"], [1, 2, 4], "110"),
        (["q"], [], ""),
    ],
)
def test_reasoning_is_what_stands_inside_of_its_marks(pieces, response, marked):
    assert "".join("01"[is_marked] for is_marked in is_reasoning(pieces, response)) == marked


def test_answers_in_batches_are_those_of_each_prompt_alone(trained, tokenizer):
    prompts = ("a", "what is it that you see there?", "one two", "x")
    questions = [Question(tokenizer.encode(text), []) for text in prompts]
    together = greedy(trained, questions, AnswersEvaluation(batch_size=4, max_new_tokens=12))
    alone = greedy(trained, questions, AnswersEvaluation(batch_size=1, max_new_tokens=12))
    assert together == alone
    assert all(len(answer.ids) == 12 or answer.ended for answer in together)


def test_answers_leave_the_models_own_settings_of_generation(trained, tokenizer):
    before = trained.model.generation_config
    greedy(trained, [Question(tokenizer.encode("a"), [])], AnswersEvaluation(max_new_tokens=1))
    assert trained.model.generation_config is before


def test_an_end_that_is_no_special_token_is_no_part_of_the_reference(trained, tokenizer, rows, monkeypatch):
    from sstoken_plugin.experiments import answers

    end = tokenizer.encode("!")
    ends = dataclasses.replace(trained.ends, ids=frozenset(end))
    asked = {**rows[2], "input_ids": [*rows[2]["input_ids"][:-1], *end], "labels": [*rows[2]["labels"][:-1], *end]}
    said = answers.Answer(tokenizer.encode("green, and nothing but green"), ended=True)
    monkeypatch.setattr(answers, "greedy", lambda *arguments: [said])
    found = measure_answers(dataclasses.replace(trained, ends=ends), [asked], AnswersEvaluation())
    assert found["exact_match"].value == 1


def test_questions_are_the_last_turns_with_all_before_them(tokenizer, rows):
    found = list(questions_of([*rows, {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]))
    assert len(found) == 3
    assert tokenizer.decode(found[0].prompt).endswith("And a long word?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(found[0].reference) == "a word that is so long that nothing else is<|im_end|>"


def test_an_exact_match_is_one_of_the_text(trained, tokenizer, rows, monkeypatch):
    from sstoken_plugin.experiments import answers

    said = ["a word that is so long that nothing else is", " wrong", "green, and nothing but green "]
    made = [answers.Answer(tokenizer.encode(text), ended=True) for text in said]
    monkeypatch.setattr(answers, "greedy", lambda *arguments: made)
    found = measure_answers(trained, rows, AnswersEvaluation())
    assert found["exact_match"].value == pytest.approx(2 / 3)
    assert found["ended"].value == 1
    last = measure_answers(trained, rows, AnswersEvaluation(extract=r"\w+"))
    assert last["exact_match"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "extract", "part"),
    [
        (" a b ", None, "a b"),
        ("#### 3\n#### 42", r"#### (\S+)", "42"),
        ("none", r"#### (\S+)", "none"),
        ("a1b22", r"\d+", "22"),
    ],
)
def test_the_answer_proper(text, extract, part):
    assert proper(text, extract) == part


def test_evaluations_have_their_names_in_measures_and_in_errors(trained, rows):
    one = evaluate(trained, "one", LossEvaluation(samples=1), lambda: rows)
    every = evaluate(trained, "all", LossEvaluation(), lambda: rows)
    assert one["one/loss"].count < every["all/loss"].count
    with pytest.raises(ValueError, match=r"evaluations\.said: datasets: no sample has a prompt"):
        evaluate(trained, "said", AnswersEvaluation(), lambda: [{"input_ids": [1, 2], "labels": [1, 2]}])


def test_numbers_of_the_harness_become_measures():
    found = measures_of(
        {
            "results": {
                "task": {
                    "alias": "task",
                    "samples": 4,
                    "acc,none": 0.5,
                    "acc_stderr,none": 0.1,
                    "ppl,strict": float("inf"),
                },
            },
            "higher_is_better": {"task": {"acc": True, "ppl": False}},
            "n-samples": {"task": {"original": 9, "effective": 4}},
        }
    )
    assert found["task/acc"].value == 0.5
    assert (found["task/acc"].better, found["task/acc"].count) == ("higher", 4)
    assert (found["task/ppl (strict)"].value, found["task/ppl (strict)"].better) == (None, "lower")
    assert set(found) == {"task/acc", "task/ppl (strict)"}


def test_tasks_of_the_harness_are_run_in_the_precision_of_training(trained, tmp_path, monkeypatch):
    evaluator = pytest.importorskip("lm_eval.evaluator", reason="lm-evaluation-harness is not installed")
    # As Axolotl has a model in full fine-tuning with bf16: its norms and embeddings stay in float32.
    model = copy.deepcopy(trained.model).bfloat16()
    for name, module in model.named_modules():
        if "norm" in name or "embed" in name:
            module.float()
    colours = ["red", "blue", "green", "yellow"]
    questions = [f"Which colour comes {place}?" for place in ("first", "second", "third", "last", "never")]
    answers = [1, 0, 1, 2, 3]
    lines = [json.dumps({"asked": asked, "answer": answer}) for asked, answer in zip(questions, answers, strict=True)]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    # As the harness has its own tasks, but with data from a file.
    task = {
        "task": "colours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{asked}}", "doc_to_target": "answer",
        "doc_to_choice": colours, "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "colours.yaml").write_text(json.dumps(task), encoding="utf-8")
    monkeypatch.setattr(evaluator, "TaskManager", functools.partial(evaluator.TaskManager, include_path=str(tmp_path)))

    found = measure_tasks(
        dataclasses.replace(trained, model=model, autocast=torch.bfloat16),
        TasksEvaluation(tasks=["colours"], few_shot=0, batch_size=2),
    )

    def likelihood(asked, colour):
        prompt, whole = (trained.tokenizer(text).input_ids for text in (asked, f"{asked} {colour}"))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.tensor([whole])).logits[0].float()
        return -functional.cross_entropy(
            logits[len(prompt) - 1 : -1], torch.tensor(whole[len(prompt) :]), reduction="sum"
        )

    picked = [max(range(4), key=lambda place, asked=asked: likelihood(asked, colours[place])) for asked in questions]
    assert found["colours/acc"].value == pytest.approx(sum(map(operator.eq, picked, answers)) / 5)
    assert (found["colours/acc"].better, found["colours/acc"].count) == ("higher", 5)


def test_a_missing_harness_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"evaluations\.t: lm-evaluation-harness is not installed; install it, as by"):
        refuse_missing("evaluations.t", ["arc_easy"])


def test_an_unknown_task_is_told_with_the_nearest(monkeypatch):
    module = type(sys)("lm_eval.tasks")
    module.TaskManager = lambda: type("Known", (), {"all_tasks": ["arc_easy", "gsm8k"]})
    monkeypatch.setattr(tasks, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "lm_eval", type(sys)("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", module)
    refuse_missing("evaluations.t", ["arc_easy"])
    with pytest.raises(ValueError, match="arc_esy is no task of lm-evaluation-harness; the nearest one is arc_easy"):
        refuse_missing("evaluations.t", ["arc_esy"])
