"""`attach` on trainers that somebody else has made their own: what would go wrong in silence stops, the rest works."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback

from sstoken_plugin import attach
from sstoken_plugin.report.callback import ReportCallback
from trainers import run_plain
from trainers.cases import SELECTS
from trainers.runs import Plan

ZERO_3 = {"deepspeed_plugin": types.SimpleNamespace(zero_stage=3)}


@pytest.fixture
def trainer(tiny_llama, chats, tmp_path):
    """A trainer of four steps that does not select yet: `trainer(steps=4, ...)`."""

    def make(**changes):
        plan = {"folder": str(tmp_path / "out"), "kind": "padded", "steps": 4, **changes}
        return run_plain.make(Plan(str(tiny_llama), str(chats), **plan))

    return make


def of_class(trainer, **methods):
    """Make a trainer one of a class with methods of its own."""
    trainer.__class__ = type("Own", (Trainer,), methods)
    return trainer


def moments(trainer):
    (report,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, ReportCallback)]
    return [moment.label for moment in report.trajectory.moments]


def test_a_callback_can_attach_while_callbacks_are_called(trainer, tmp_path):
    """As that of ms-swift does; it must not be called twice because of those that are added."""
    selects, attached = trainer(steps=1), []

    class Attaches(TrainerCallback):
        def on_init_end(self, args, state, control, **kwargs):
            attached.append(attach(selects, SELECTS))

    selects.add_callback(Attaches())
    selects.callback_handler.on_init_end(selects.args, selects.state, selects.control)
    assert attached == [selects]
    selects.train()
    assert (tmp_path / "out" / "sstoken" / "report.html").exists()


def test_a_second_training_begins_anew(trainer):
    selects = attach(trainer(), SELECTS)
    selects.train()
    first = moments(selects)
    selects.args.max_steps = 6
    selects.train()
    assert first[-1] == "step 4 of 4"
    assert moments(selects)[-1] == "step 6 of 6"
    assert all(label.endswith("of 6") for label in moments(selects))


def test_rows_that_a_collator_tokenises_train_for_several_epochs(trainer):
    """Full fine-tuning, whose history would be left out if its losses were all kept."""
    selects = trainer(steps=24, options={"remove_unused_columns": False})
    selects.model = selects.model.merge_and_unload()
    selects.model.requires_grad_(True)
    rows, collate = selects.train_dataset, selects.data_collator
    selects.train_dataset = [{"number": number} for number in range(len(rows))]
    selects.data_collator = lambda batch: collate([rows[row["number"]] for row in batch])
    attach(selects, SELECTS).train()
    assert selects.state.epoch > 1
    assert any(line.get("sstoken/history_cache_hits") == 1 for line in selects.state.log_history)


def test_a_model_that_is_made_for_a_training_has_a_history_of_its_own(trainer):
    selects = trainer()
    made = [trainer().model, trainer().model]
    selects.model_init = lambda: made.pop()
    with torch.no_grad():
        for weight in made[0].parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    attach(selects, selector="rel", warmup_ratio=0.0, history="ema", report=False)
    selects.train()
    selects.train()
    first = next(line for line in selects.state.log_history if "sstoken/rel_mean" in line)
    assert not made
    assert first["sstoken/rel_mean"] == 0


def test_who_reads_the_outputs_of_a_step_gets_all_logits_and_keeps_the_labels(trainer):
    seen = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        shape = tuple(inputs["input_ids"].shape)
        own = super(type(self).__mro__[1], self)
        loss, outputs = own.compute_loss(model, inputs, True, num_items_in_batch)
        seen.append((tuple(outputs["logits"].shape[:2]) == shape, "labels" in inputs))
        return (loss, outputs) if return_outputs else loss

    attach(of_class(trainer(), compute_loss=compute_loss), SELECTS).train()
    assert seen
    assert all(whole and labelled for whole, labelled in seen)


def test_tokens_that_are_counted_elsewhere_stop_the_run(trainer):
    def get_batch_samples(self, iterator, count, device):
        batches = [next(iterator) for _ in range(count)]
        return batches, sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)

    with pytest.raises(RuntimeError, match="counts the tokens of a step without sstoken"):
        attach(of_class(trainer(), get_batch_samples=get_batch_samples), SELECTS).train()


def test_micro_batches_that_go_round_the_selection_stop_the_run(trainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls % 2:
            return model(**inputs).loss
        return super(type(self).__mro__[1], self).compute_loss(model, inputs, *args, **kwargs)

    with pytest.raises(RuntimeError, match="computed the loss of a step without sstoken"):
        attach(of_class(trainer(accumulation=2), compute_loss=compute_loss), SELECTS).train()


def test_an_attachment_that_fails_can_be_tried_again(trainer):
    plain = trainer()
    tokenizer, kind = plain.processing_class, type(plain)
    plain.processing_class = None
    with pytest.raises(ValueError, match="processing_class: it is None"):
        attach(plain, SELECTS)
    assert type(plain) is kind
    plain.processing_class = tokenizer
    attach(plain, SELECTS).train()
    assert (Path(plain.args.output_dir) / "sstoken" / "report.html").exists()


def test_a_trainer_of_a_package_that_is_called_like_one_of_our_layers(trainer):
    plain = of_class(trainer())
    type(plain).__module__ = "training.mine"
    attach(plain, SELECTS).train()
    assert plain.state.log_history[0]["sstoken/selected_ratio"] < 1


def test_what_the_selection_cannot_run_beside_is_refused(trainer):
    stream = trainer()
    stream.train_dataset = (row for row in stream.train_dataset)
    with pytest.raises(ValueError, match="train_dataset: a stream has not been tested"):
        attach(stream)
    split = trainer()
    split.accelerator = types.SimpleNamespace(parallelism_config=types.SimpleNamespace(cp_size=2))
    with pytest.raises(ValueError, match="parallelism_config: cp_size=2 splits a sample"):
        attach(split)
    for engine, block, said in (
        ({"fsdp_plugin": types.SimpleNamespace(fsdp_version=1)}, {}, "fsdp_version: 1 flattens weights"),
        (ZERO_3, {"history_cache": "cache"}, "sstoken.history_cache: cache needs every weight"),
        (ZERO_3, {"history": "adapter"}, "sstoken.history: adapter needs every weight"),
    ):
        sharded = trainer()
        sharded.accelerator = types.SimpleNamespace(state=types.SimpleNamespace(**engine))
        with pytest.raises(ValueError, match=said):
            attach(sharded, block)
    several = trainer()
    several.args._n_gpu = 2
    with pytest.raises(ValueError, match="n_gpu: one process for 2 GPUs"):
        attach(several)


def test_a_batch_without_labels_stops_the_run(trainer):
    unlabelled = trainer()
    collate = unlabelled.data_collator
    unlabelled.data_collator = lambda rows: {key: value for key, value in collate(rows).items() if key != "labels"}
    with pytest.raises(ValueError, match="train_dataset: a batch has no labels"):
        attach(unlabelled, SELECTS).train()
