"""Real Axolotl runs on a tiny model: what is trained on, what is logged, what stays as it was."""

import json
import math
import re
import types
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write
from material import STEADY, chat
from torch.nn import functional
from transformers import Trainer, TrainerCallback

from sstoken_plugin.engine.step import Phase, TokenScores
from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.selection.selectors import SELECTORS
from sstoken_plugin.selection.turns import EndTokens, Turns
from sstoken_plugin.training.metrics import METRICS, Totals, counts, ratios


def data(tmp_path, *lines) -> list[dict]:
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return [{"path": str(file), "type": "chat_template", "field_messages": "messages"}]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_implementation": "eager", "micro_batch_size": 3, "gradient_accumulation_steps": 1},
        {"sample_packing": True, "pad_to_sequence_len": True},
        {"sample_packing": True, "train_on_inputs": True},
        # Releases differ in whether a row's first token, which nothing predicts, is counted.
        {"train_on_inputs": True},
        {"lora_dropout": 0.3, "gradient_checkpointing": True},
        {"sstoken": {"selector": "all"}},
        # On a CPU, one scoring pass in evaluation mode would cut the gradient from then on: see modes.py.
        {"adapter": "qlora", "load_in_4bit": True},
        {
            "val_set_size": 0.25,
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "max_steps": 8,
            "learning_rate": 0.1,
            "early_stopping_patience": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        },
    ],
    ids=[
        "padded", "eager", "packed", "packed, every token labelled", "padded, every token labelled", "dropout",
        "selector all", "qlora", "evaluation, early stopping, best model",
    ],
)  # fmt: skip
def test_ratio_one_trains_as_without_the_plugin(config, train, changes):
    settings = changes.pop("sstoken", {"ratio": 1.0})
    selected = train({**config, **STEADY, **changes, "sstoken": settings})
    plain = train({**config, **STEADY, **changes, "plugins": [], "sstoken": None})
    assert selected.losses == pytest.approx(plain.losses, abs=2e-5)
    assert selected.trainer.state.best_metric == pytest.approx(plain.trainer.state.best_metric, abs=2e-5)
    for name, weight in plain.weights.items():
        torch.testing.assert_close(selected.weights[name], weight, atol=2e-5, rtol=1e-4)


def test_where_nothing_is_dropped_the_trainers_own_count_is_taken(config, train, tmp_path, monkeypatch):
    """As releases of transformers before 5.14 count: a row's first token too, if it is labelled."""
    collect = Trainer.get_batch_samples

    def every_label(self, *arguments):
        batches, items = collect(self, *arguments)
        return batches, None if items is None else sum((batch["labels"] != -100).sum() for batch in batches)

    monkeypatch.setattr(Trainer, "get_batch_samples", every_label)
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": "red blue green " * length}) for length in range(1, 13)))
    settings = {**config, "datasets": [{"path": str(file), "type": "completion"}], "max_steps": 2}
    selected, plain = train({**settings, "sstoken": {"ratio": 1.0}}), train({**settings, "plugins": []})
    assert selected.losses == pytest.approx(plain.losses, abs=2e-5)


SHARING = [name for name, row in SELECTORS.items() if "path" not in row.needs and not row.is_threshold]


@pytest.mark.parametrize("selector", SHARING)
def test_every_selector_keeps_its_share_of_every_sample(config, train, steps, selector):
    run = train({**config, "sstoken": {"selector": selector, "ratio": 0.4, "warmup_ratio": 0.0}})
    assert len(steps) == 8
    for step, _ in steps:
        kept = torch.zeros_like(step.layout.lengths).scatter_add_(0, step.layout.sample, step.kept.long())
        ratio = 1.0 if selector == "all" else 0.4
        assert kept.tolist() == [math.ceil(ratio * n) for n in step.layout.lengths.tolist()]
    line = run.lines[-1]
    if selector == "all":
        assert line["sstoken/selected_ratio"] == 1
    if selector == "position":
        assert all(step.kept[step.layout.index_in_sample == 0].any() for step, _ in steps)


@pytest.mark.parametrize(("selector", "signal"), [("lowest_base_loss", "history"), ("probability", "current")])
def test_the_tokens_with_the_lowest_losses_are_kept_from_the_first_step_on(config, train, steps, selector, signal):
    # Full fine-tuning: there a history costs memory, so that there is none unless it ranks.
    full = {**config, "adapter": None, "learning_rate": 0.005}
    run = train({**full, "sstoken": {"selector": selector, "ratio": 0.5, "keep_eos": False}})
    assert len(steps) == 8
    for step, _ in steps:
        assert (step.scores.history is not None) is (signal == "history")
        losses = getattr(step.scores, signal)
        for sample, length in enumerate(step.layout.lengths.tolist()):
            of_sample = step.layout.sample == sample
            kept, own = step.kept[of_sample], losses[of_sample]
            assert kept.sum() == math.ceil(0.5 * length)
            assert kept.all() or own[kept].max() <= own[~kept].min()
    assert {line["sstoken/gamma"] for line in run.lines} == {0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": "qlora", "load_in_4bit": True},
        {"load_in_8bit": True},
        {"adapter": None, "learning_rate": 0.005},
        {
            "lora_modules_to_save": ["embed_tokens", "lm_head"],
            "lora_target_linear": False,
            "lora_target_modules": ["q_proj"],
        },
    ],
    ids=["lora", "qlora", "8 bits", "full", "trainable embeddings"],
)
def test_only_kept_tokens_give_gradient(config, train, steps, changes):
    run = train({**config, **changes, "max_steps": 2, "sstoken": {"ratio": 0.4}})
    step, batch = steps[-1]
    labels = torch.full_like(batch["labels"], -100)
    where = step.layout.position[step.kept]
    labels.view(-1)[where] = batch["labels"].view(-1)[where]

    def gradients(loss):
        run.model.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}

    run.model.train()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    again = run.trainer.sstoken.selection.begin(run.model, batch, step.phase)
    with again.observed():
        outputs = run.model(**inputs)
    again.kept = step.kept
    ours = gradients(again.loss(outputs))
    labels.fill_(-100).view(-1)[again.layout.position[again.kept]] = again.layout.target[again.kept]
    theirs = gradients(run.model(**inputs, labels=labels).loss)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        if "load_in_8bit" in changes:
            # Its layers pass the gradient on in half precision, so that rounding grows from layer to layer.
            assert (ours[name] - gradient).norm() < 0.02 * gradient.norm()
        else:
            torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_run_selects_what_the_full_matrices_and_two_models_select(config, train, steps, tiny_llama):
    """The pipeline against an independent computation: eager attention matrices and a separate base model."""
    from transformers import AutoModelForCausalLM

    run = train({**config, "sstoken": {"ratio": 0.5, "warmup_ratio": 0.0, "keep_eos": False}})
    run.model.eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager").eval()
    tuned = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    from peft import PeftModel

    run.model.save_pretrained(Path(config["output_dir"]) / "adapter")
    tuned = PeftModel.from_pretrained(tuned, Path(config["output_dir"]) / "adapter").eval()
    _, batch = steps[0]
    phase = steps[0][0].phase
    again = run.trainer.sstoken.selection.begin(run.model, batch, phase)
    with torch.no_grad(), again.observed():
        again.loss(run.model(**{key: value for key, value in batch.items() if key != "labels"}))
    chosen = torch.zeros_like(batch["labels"]).view(-1).scatter_(0, again.layout.position[again.kept], 1)
    chosen = chosen.view_as(batch["labels"]).bool()
    for row in range(len(batch["labels"])):
        real = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][real][None], batch["labels"][row][real]
        with torch.no_grad():
            now = tuned(ids, output_attentions=True)
            before = base(ids)
        attention = now.attentions[-1][0].mean(0)
        prompt, places = labels == -100, (labels != -100).nonzero().squeeze(1)
        nll = [functional.cross_entropy(o.logits[0, :-1], ids[0, 1:], reduction="none") for o in (before, now)]
        rel = (nll[0] - nll[1])[places - 1]
        score = 0.5 * (rel - rel.min()) / (rel.max() - rel.min() + 1e-8)
        score = score + 0.5 * (attention[places] * prompt).sum(-1)
        best = places[score.topk(math.ceil(len(places) * 0.5)).indices]
        assert sorted(best.tolist()) == chosen[row][real].nonzero().squeeze(1).tolist()


def test_metrics_are_in_every_log_line_and_in_the_trainer_state(config, train):
    train({**config, "save_strategy": "steps", "save_steps": 4, "sstoken": {"warmup_ratio": 0.0}})
    state = json.loads((Path(config["output_dir"]) / "checkpoint-4" / "trainer_state.json").read_text())
    lines = [line for line in state["log_history"] if "loss" in line]
    assert len(lines) == 4
    for line in lines:
        assert METRICS.keys() - {"sstoken/not_finite"} <= line.keys()
        assert all(math.isfinite(value) for name, value in line.items() if name in METRICS)
        assert "sstoken/not_finite" not in line
    assert lines[0]["sstoken/rel_mean"] == 0
    assert lines[0]["sstoken/eos_selected"] == 1
    assert 0 < lines[0]["sstoken/attention_mean"] < 1


def test_logged_metrics_cover_all_steps_since_the_last_line(config, train, steps):
    run = train({**config, "logging_steps": 4, "sstoken": {"ratio": 0.5}})
    (line,) = run.lines
    kept = torch.cat([step.kept for step, _ in steps])
    current = torch.cat([step.scores.current for step, _ in steps])
    assert line["sstoken/selected_ratio"] == pytest.approx(kept.float().mean().item(), abs=1e-4)
    assert line["sstoken/loss_selected"] == pytest.approx(current[kept].mean().item(), abs=1e-4)
    assert line["sstoken/loss_unselected"] == pytest.approx(current[~kept].mean().item(), abs=1e-4)
    assert line["sstoken/gamma"] == pytest.approx(0.5 * 3 / 4)


@pytest.mark.parametrize("warmup_selector", ["attention", "all", "random"])
def test_another_selector_acts_during_the_warmup(config, train, steps, warmup_selector):
    settings = {"warmup_ratio": 0.5, "warmup_selector": warmup_selector, "gamma": 0.7}
    run = train({**config, "sstoken": settings})
    assert [line["sstoken/gamma"] for line in run.lines] == [0, 0, 0.7, 0.7]
    assert [step.phase.rule for step, _ in steps] == [warmup_selector] * 4 + ["sstoken"] * 4
    everything = run.lines[0]["sstoken/selected_ratio"] == 1
    assert everything == (warmup_selector == "all")
    assert all(line["sstoken/signal_overlap"] < 1 for line in run.lines[2:])


@pytest.fixture(params=[False, True], ids=["mean of micro-batches", "num_items_in_batch"])
def counted(request, monkeypatch):
    """Whether Trainer counts the tokens of a step."""
    from sstoken_plugin.axolotl.trainer import SSTokenTrainer

    create = SSTokenTrainer.__init__

    def init(self, *args, **kwargs):
        create(self, *args, **kwargs)
        # Axolotl switches it off up to 0.19; since 0.20 the model's loss function decides.
        self.model_accepts_loss_kwargs = request.param

    monkeypatch.setattr(SSTokenTrainer, "__init__", init)
    return request.param


def test_a_threshold_keeps_what_is_likely_and_the_loss_is_divided_by_all_tokens(config, train, steps, counted):
    # Some tokens are likelier than chance among those of the tokenizer, and some less.
    least = 1 / 49152
    settings = {"selector": "threshold", "min_probability": least, "warmup_selector": "all", "warmup_ratio": 0.25}
    run = train({**config, "sstoken": settings})
    likely = [step.scores.current <= -math.log(least) for step, _ in steps]
    for number, (step, _) in enumerate(steps):
        assert step.kept.tolist() == (likely[number] | step.turns.ends | (number < 2)).tolist()
    assert 0 < sum(int((~step.kept).sum()) for step, _ in steps) < sum(len(step.kept) for step, _ in steps[2:])
    (one, _), (other, _) = steps[2:4]
    sums = [step.scores.current[step.kept].sum().item() for step in (one, other)]
    counts = [len(step.kept) for step in (one, other)]
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    expected = sum(sums) / sum(counts) if counted else sum(means) / len(means)
    assert run.losses[1] == pytest.approx(expected, abs=1e-4)


def test_the_loss_is_divided_by_the_kept_tokens(config, train, steps, counted):
    run = train({**config, "max_steps": 1, "sstoken": {"ratio": 0.5}})
    sums = [step.scores.current[step.kept].sum().item() for step, _ in steps]
    kept = [int(step.kept.sum()) for step, _ in steps]
    assert len(set(kept)) > 1
    means = [s / k for s, k in zip(sums, kept, strict=True)]
    expected = sum(sums) / sum(kept) if counted else sum(means) / len(means)
    assert run.losses[0] == pytest.approx(expected, abs=1e-4)


def test_a_loss_that_something_else_gave_the_trainer_is_not_replaced_in_silence(config, train, monkeypatch):
    from sstoken_plugin.axolotl.trainer import SSTokenTrainer

    def new_loss(outputs, labels, num_items_in_batch=None):
        return outputs.logits.sum()

    create = SSTokenTrainer.__init__

    def init(self, *args, **kwargs):
        create(self, *args, **kwargs, compute_loss_func=new_loss)

    monkeypatch.setattr(SSTokenTrainer, "__init__", init)
    with pytest.raises(ValueError, match="a loss of its own, new_loss, in place of which sstoken"):
        train(config)


def test_a_trainer_that_goes_round_the_selection_is_stopped_after_its_first_step(config, train, monkeypatch):
    from sstoken_plugin.axolotl.trainer import SSTokenTrainer

    def compute_loss(self, model, inputs, *args, **kwargs):
        return model(**inputs).loss

    monkeypatch.setattr(SSTokenTrainer, "compute_loss", compute_loss)
    finished = []
    monkeypatch.setattr(SSTokenTrainer, "log", lambda self, logs, *args: finished.append(self.state.global_step))
    with pytest.raises(RuntimeError, match="SSTokenTrainer computed the loss of a step without sstoken"):
        train(config)
    assert max(finished, default=0) <= 1


class Meddler(TrainerCallback):
    """What another plugin's callback may do to the trainer at a moment of the run."""

    def __init__(self, trainer, moment, meddle):
        setattr(self, moment, lambda *args, **kwargs: meddle(trainer))


def other_loss(outputs, labels, num_items_in_batch=None):
    return outputs.logits.float().pow(2).mean()


def plain_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    return (outputs.loss, outputs) if return_outputs else outputs.loss


def take_over(trainer):
    trainer.compute_loss = types.MethodType(plain_loss, trainer)


@pytest.mark.parametrize(
    ("moment", "meddle", "error"),
    [
        ("on_step_end", take_over, "computed the loss of a step without sstoken"),
        ("on_train_begin", take_over, "computed the loss of a step without sstoken"),
        ("on_train_begin", lambda trainer: setattr(trainer, "compute_loss_func", other_loss), "of its own, other_loss"),
        ("on_step_end", lambda trainer: setattr(trainer, "compute_loss_func", other_loss), "of its own, other_loss"),
    ],
)
def test_a_loss_that_takes_over_later_stops_the_run(config, train, monkeypatch, moment, meddle, error):
    from sstoken_plugin.axolotl.trainer import SSTokenTrainer

    create = SSTokenTrainer.__init__

    def init(self, *args, **kwargs):
        create(self, *args, **kwargs)
        self.add_callback(Meddler(self, moment, meddle))

    monkeypatch.setattr(SSTokenTrainer, "__init__", init)
    with pytest.raises((RuntimeError, ValueError), match=error):
        train(config)


def test_a_patched_trainer_is_told_by_our_sentence(config, train, monkeypatch):
    monkeypatch.setattr(Trainer, "compute_loss", plain_loss)
    with pytest.raises(RuntimeError, match="computed the loss of a step without sstoken"):
        train(config)


def test_evaluation_reports_the_ordinary_loss(config, train):
    changes = {"val_set_size": 6, "eval_steps": 2, "max_steps": 2}
    selected = train({**config, **changes, "sstoken": {"ratio": 0.2}})
    plain = train({**config, **changes, "plugins": []})

    def first(run):
        return next(line["eval_loss"] for line in run.trainer.state.log_history if "eval_loss" in line)

    assert first(selected) == pytest.approx(first(plain), abs=1e-6)


def test_packed_and_padded_rows_keep_the_same_tokens(config, train, steps):
    def kept(**changes):
        steps.clear()
        train(
            {
                **config,
                **changes,
                "max_steps": 0,
                "num_epochs": 1,
                "learning_rate": 0.0,
                "sstoken": {"warmup_ratio": 1.0},
            }
        )
        found = set()
        for step, batch in steps:
            ids = batch["input_ids"].view(-1)
            for sample in range(len(step.layout.lengths)):
                positions = step.layout.position[step.layout.sample == sample]
                start = positions[0] - 8
                found.add(
                    (
                        tuple(ids[start : positions[-1] + 1].tolist()),
                        tuple(step.kept[step.layout.sample == sample].tolist()),
                    )
                )
        return found

    assert kept() == kept(sample_packing=True, micro_batch_size=1)


def test_random_selection_follows_the_seed_and_not_the_batch(config, train):
    def run(seed, **changes):
        settings = {"selector": "random", "ratio": 0.5, "seed": seed}
        return train({**config, "sstoken": settings, "max_steps": 2, **changes}).losses

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_batch_without_response_tokens_trains_on(config, train, tmp_path):
    # A response that is cut off whole: the prompt alone fills the sequence.
    lines = [chat("word " * 300, "lost"), chat("word " * 300, "lost too"), *[chat("Say a.", "a b c d e")] * 4]
    changes = {"datasets": data(tmp_path, *lines), "excess_length_strategy": "truncate", "sequence_len": 64}
    run = train({**config, **changes, "gradient_accumulation_steps": 1, "micro_batch_size": 1, "max_steps": 6})
    assert all(math.isfinite(loss) for loss in run.losses)


def test_a_sample_cut_off_keeps_no_end_of_turn(config, train, steps, tmp_path):
    lines = [chat("Say a.", "a b c d e f g h " * 20)] * 4
    changes = {"datasets": data(tmp_path, *lines), "excess_length_strategy": "truncate", "sequence_len": 64}
    run = train({**config, **changes, "max_steps": 1})
    assert all(not step.turns.ends.any() for step, _ in steps)
    assert "sstoken/eos_selected" not in run.lines[0]


def test_one_response_token_is_kept(config, train, steps, tmp_path):
    changes = {"datasets": data(tmp_path, *[chat("Say a.", "a")] * 4), "train_on_eos": "none"}
    for source in changes["datasets"]:
        source["train_on_eos"] = "none"
    train({**config, **changes, "max_steps": 1})
    assert {tuple(step.layout.lengths.tolist()) for step, _ in steps} <= {(1, 1), (1,)}
    assert all(step.kept.all() for step, _ in steps)


def test_completion_data_is_ranked_by_rel_with_one_warning(config, train, steps, tmp_path, caplog):
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "\n".join(json.dumps({"text": f"number {i} is followed by {i + 1} and {i + 2}"}) for i in range(16))
    )
    changes = {"datasets": [{"path": str(file), "type": "completion"}]}
    run = train({**config, **changes, "sstoken": {"ratio": 0.5, "keep_eos": False, "warmup_ratio": 0.0}})
    warnings = [text for text in run.trainer.sstoken.warnings if "no prompt" in text]
    assert len(warnings) == 1
    step, _ = steps[-1]
    for sample in range(len(step.layout.lengths)):
        of_sample = step.layout.sample == sample
        rel, kept = step.scores.rel[of_sample], step.kept[of_sample]
        assert rel[kept].min() >= rel[~kept].max()


def test_losses_that_are_not_finite_rank_last_and_are_reported(config, train, steps):
    run = train({**config, "max_steps": 1, "sstoken": {"warmup_ratio": 0.0}})
    step, batch = steps[-1]
    again = run.trainer.sstoken.selection.begin(run.model, batch, step.phase)
    suppressed = again.layout.target[again.layout.index_in_sample == 1]
    head = run.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)).index_fill(0, suppressed, -torch.inf))
    with again.observed():
        outputs = run.model(**{key: value for key, value in batch.items() if key != "labels"})
    assert torch.isfinite(again.loss(outputs))
    assert not again.kept[torch.isin(again.layout.target, suppressed)].any()
    run.trainer.sstoken.totals.add(counts(again))
    run.trainer.log({"loss": 1.0})
    assert any("not finite" in text for text in run.trainer.sstoken.warnings)


def test_losses_that_are_not_finite_are_not_counted_as_nothing(config, train):
    """The second step goes far beyond what float32 holds."""
    run = train({**config, "learning_rate": 1e30, "max_steps": 3, "sstoken": {"warmup_ratio": 0.0}})
    first, *others = run.lines
    assert first["sstoken/loss_selected"] > 1
    assert "sstoken/not_finite" not in first
    for line in others:
        assert line["sstoken/not_finite"] > 0.5
        for name in ("sstoken/loss_selected", "sstoken/loss_unselected", "sstoken/attention_mean"):
            assert name not in line or (math.isfinite(line[name]) and line[name] > 0)
    told = [warning for warning in run.trainer.sstoken.warnings if "not finite" in warning]
    assert run.trainer.sstoken.warnings == told
    assert len(told) == 1


def test_a_loss_that_is_not_finite_on_some_tokens_is_left_out_of_the_mean():
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "labels": torch.tensor([[-100, 6, 7, 8, 9]])}
    layout = BatchLayout.of(batch)
    losses = torch.tensor([1.0, math.nan, 2.0, math.inf])
    step = types.SimpleNamespace(
        layout=layout, scores=TokenScores(losses, None, None, torch.tensor([0.5, math.nan, 0.5, 0.5]), losses),
        kept=torch.tensor([True, True, False, False]), places=torch.tensor([2]), cached_samples=0,
        turns=Turns.of(batch, layout, EndTokens()), phase=Phase("position", 0.0, 0.5),
    )  # fmt: skip
    totals = Totals()
    totals.add(counts(step))
    found = ratios(totals.take())
    assert found["sstoken/loss_selected"] == 1.0
    assert found["sstoken/loss_unselected"] == 2.0
    assert found["sstoken/not_finite"] == 0.5
    assert found["sstoken/attention_mean"] == 0.5


def test_counts_of_a_release_that_measured_every_sample_go_on():
    totals = Totals()
    totals.restore({"samples": 6.0, "cached_samples": 6.0}, torch.device("cpu"))
    assert ratios(totals.take())["sstoken/history_cache_hits"] == 1


def test_a_report_is_written_unless_switched_off(config, train):
    run = train({**config, "sample_packing": True})
    page = Path(run.cfg.output_dir) / "sstoken" / "report.html"
    text = page.read_text()
    assert "sstoken/loss_selected" in text
    assert "ssToken is active" in text
    page.unlink()
    train({**config, "sstoken": {"report": False}})
    assert not page.exists()


def test_the_yaml_of_the_design_trains(config, train):
    block = yaml.safe_load(
        """
        selector: sstoken
        ratio: 0.6
        gamma: 0.5
        warmup_ratio: 0.2
        warmup_selector: attention
        attention_layer: -1
        history: initial
        history_ema_decay: 0.99
        history_update_steps: 100
        history_device: auto
        history_cache: null
        keep_eos: true
        seed: null
        report: true
        """
    )
    short = {"warmup_selector": "attention"}
    assert train({**config, "sstoken": block}).losses == train({**config, "sstoken": short}).losses


def test_gradient_checkpointing_changes_nothing(config, train):
    plain = train(config)
    for reentrant in (True, False):
        kwargs = {"use_reentrant": reentrant}
        run = train({**config, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs})
        assert run.losses == pytest.approx(plain.losses, abs=1e-5)


def test_chunked_cross_entropy_is_left_to_evaluation(config, tmp_path, accelerate_run):
    """The patch that this key installs stays in a process, so the run gets one of its own."""
    output = accelerate_run(write({**config, "chunked_cross_entropy": True, "max_steps": 2}, tmp_path))
    assert "chunked_cross_entropy serves evaluation only" in output
    assert "'sstoken/selected_ratio'" in output


def test_the_two_warm_ups_of_a_run_are_told_apart_once(config, train, caplog):
    train({**config, "lr_scheduler": "linear", "warmup_ratio": 0.5, "sstoken": {"warmup_ratio": 0.25}})
    told = [record.getMessage() for record in caplog.records if "warm-ups" in record.getMessage()]
    assert told == [
        "ssToken: there are two warm-ups: warmup_ratio or warmup_steps of Axolotl is that of the learning rate, which "
        "rises over 2 of 4 optimizer steps; sstoken.warmup_ratio is that of the selection, which takes all of "
        "them in the first 1."
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler": "constant", "warmup_steps": 2},
        {"lr_scheduler": "linear", "warmup_steps": 0},
        {"lr_scheduler": "linear", "warmup_steps": 2, "sstoken": {"warmup_ratio": 0.0}},
    ],
    ids=["a rate that is constant", "a rate without one", "a selection without one"],
)
def test_of_one_warm_up_nothing_is_told(config, train, caplog, changes):
    train({**config, "max_steps": 1, "sstoken": {}, **changes})
    assert "warm-ups" not in caplog.text


def test_a_share_that_is_not_the_ratio_is_explained_in_the_log_and_on_the_page(config, train, caplog, tmp_path):
    """The chats are short answers, so that what is rounded up in each counts."""
    run = train({**config, "max_steps": 6, "sstoken": {"selector": "attention", "ratio": 0.6}})
    (share,) = re.findall(r"ratio: 0\.6 comes to (\S+)% of the response tokens in this data", caplog.text)
    kept = [line["sstoken/selected_ratio"] for line in run.lines]
    assert sum(kept) / len(kept) == pytest.approx(float(share) / 100, abs=0.005)
    # In the sentence of the start, and in the verdict in the same words.
    page = (tmp_path / "out" / "sstoken" / "report.html").read_text()
    assert page.count(f"ratio: 0.6 comes to {share}% of the response tokens in this data, because") == 2


def test_a_share_that_is_the_ratio_needs_no_words(config, train, caplog):
    train({**config, "max_steps": 1, "sstoken": {"ratio": 1}})
    assert "comes to" not in caplog.text
