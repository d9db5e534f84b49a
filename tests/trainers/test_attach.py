"""`attach` on trainers that somebody else has made their own: what would go wrong in silence stops, the rest works."""

from __future__ import annotations

import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from material import spread_over_gpus
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import EarlyStoppingCallback, LlamaForSequenceClassification, Trainer, TrainerCallback

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


def told(trainer):
    """Losses and metrics of the selection, log line by log line."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{key: line[key] for key in line if key == "loss" or "sstoken/" in key} for line in lines]


def with_adapter(trainer, folder):
    """Give a trainer a model whose adapter was trained."""
    trainer.model = trainer.model_wrapped = PeftModel.from_pretrained(trainer.model.unload(), folder, is_trainable=True)
    return trainer


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


@pytest.mark.parametrize("history", ["initial", "an adapter"])
def test_a_run_resumes_with_the_adapter_of_its_checkpoint_already_loaded(trainer, trained_adapter, history):
    """As many scripts make the model of a run that goes on; its history is still the first one."""
    block = {**SELECTS, "history": trained_adapter if history == "an adapter" else history}
    whole = attach(trainer(saves=2), block)
    whole.train()
    folder = f"{whole.args.output_dir}/checkpoint-2"
    resumed = attach(with_adapter(trainer(saves=2), folder), block)
    resumed.train(resume_from_checkpoint=folder)
    assert told(resumed) == told(whole)
    assert not resumed.sstoken.warnings


def test_an_adapter_that_was_trained_before_the_run_stays_part_of_its_history_when_it_resumes(trainer, trained_adapter):
    whole = attach(with_adapter(trainer(saves=2), trained_adapter), SELECTS)
    whole.train()
    resumed = attach(with_adapter(trainer(saves=2), trained_adapter), SELECTS)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert told(resumed) == told(whole)
    assert not resumed.sstoken.warnings


def test_a_cache_of_whole_rows_serves_no_training_on_cut_ones(trainer, tmp_path):
    """Full fine-tuning, in which no copy of the model is kept where the cache has all losses."""
    block = {"selector": "rel", "warmup_ratio": 0.0, "history_cache": str(tmp_path / "cache"), "report": False}

    def full(**changes):
        made = trainer(**changes)
        made.model = made.model_wrapped = made.model.merge_and_unload()
        made.model.requires_grad_(True)
        return made

    attach(full(steps=12), block).train()
    cut = full()
    collate = cut.data_collator
    cut.data_collator = lambda rows: collate([{name: column[:-2] for name, column in row.items()} for row in rows])
    attach(cut, block).train()
    assert cut.state.global_step == 4


def test_the_page_names_the_model_that_an_early_stop_has_loaded(trainer):
    stops = trainer(steps=9, evaluates=True, saves=1, learning_rate=0.0, options={"load_best_model_at_end": True})
    stops.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    attach(stops, SELECTS).train()
    assert stops.state.global_step == 3
    assert moments(stops)[-1] == "the best model (checkpoint-1) at step 3 of 9"


@pytest.mark.parametrize(
    ("block", "first", "then", "stops"),
    [
        (SELECTS, "", "embed_tokens.weight", True),
        ({"selector": "random"}, "", "embed_tokens.weight", False),
        ({**SELECTS, "history": "ema"}, "layers.0.", "layers.1.", True),
        (SELECTS, "layers.0.", "layers.1.", False),
    ],
)
def test_weights_that_begin_to_train_later_stop_a_run_whose_history_needs_what_they_were(
    trainer, block, first, then, stops
):
    """The model without its adapter is a history that does not need the adapter's weights."""
    selects = trainer()

    def train_alone(part):
        for name, weight in selects.model.named_parameters():
            weight.requires_grad_(part in name and ("lora_" in name or "embed" in part))

    class Unfreezes(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                train_alone(then)

    if first:
        train_alone(first)
    selects.add_callback(Unfreezes())
    attach(selects, block)
    with pytest.raises(RuntimeError, match=r"requires_grad: .* train that did not") if stops else nullcontext():
        selects.train()


def test_an_adapter_that_was_trained_before_is_the_history_where_no_checkpoint_has_a_copy(trainer, trained_adapter):
    """Nothing ranked by it in the run that is resumed."""
    whole = attach(with_adapter(trainer(saves=2), trained_adapter), {"selector": "random"})
    whole.train()
    resumed = attach(with_adapter(trainer(), trained_adapter), {**SELECTS, "selector": "rel"})
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert "the weights before training (a copy)" in resumed.sstoken.selection.history.history.description


def test_another_history_than_that_of_the_checkpoint_begins_as_in_a_new_run(trainer):
    whole = attach(trainer(saves=2), {**SELECTS, "history": "ema"})
    whole.train()
    folder = f"{whole.args.output_dir}/checkpoint-2"
    resumed = attach(with_adapter(trainer(), folder), SELECTS)
    resumed.train(resume_from_checkpoint=folder)
    assert "adapter switched off" in resumed.sstoken.selection.history.history.description
    assert "the history is the one that a new run would have" in " ".join(resumed.sstoken.warnings)


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


@pytest.mark.parametrize("module", ["training.mine", "plugin", "__main__"])
def test_a_trainer_of_a_module_that_is_called_like_one_of_our_files(module, trainer):
    plain = of_class(trainer(steps=1))
    type(plain).__module__ = module
    before = {*sys.modules}
    attach(plain, SELECTS).train()
    assert plain.state.log_history[0]["sstoken/selected_ratio"] < 1
    named = f"sstoken_plugin.{module.partition('.')[0]}"
    assert {named, f"{named}.bridge"} & {*sys.modules} <= before


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"history": "EMA"}, "sstoken.history: EMA is no folder, .* did you mean 'ema'?"),
        ({"history": "org/model"}, "sstoken.history: org/model is no folder; .*`hf download org/model"),
        ({"history_cache": "s3://bucket/cache"}, "sstoken.history_cache: s3://bucket/cache is an address"),
        ({"history_cache": "$NO_SUCH/cache"}, "sstoken.history_cache: .* no environment variable .NO_SUCH"),
        ({"history_cache": __file__}, "sstoken.history_cache: .* cannot be a folder"),
    ],
)
def test_what_a_setting_names_and_is_none_is_refused_before_training(block, said, trainer):
    with pytest.raises(ValueError, match=said):
        attach(trainer(), block)


def test_models_that_predict_no_tokens_of_the_text_are_refused(trainer, tiny_llama):
    classifies = trainer()
    classifies.model = LlamaForSequenceClassification.from_pretrained(tiny_llama)
    with pytest.raises(ValueError, match="model: LlamaForSequenceClassification does not predict the next token"):
        attach(classifies)
    prompted = trainer()
    prompted.model = get_peft_model(
        prompted.model.unload(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    with pytest.raises(ValueError, match="peft_type: PROMPT_TUNING puts tokens of its own before"):
        attach(prompted)


def test_a_model_on_several_gpus_is_refused_before_it_is_trained(trainer):
    spread = attach(trainer(), SELECTS)
    spread_over_gpus(spread.model)
    with pytest.raises(ValueError, match="device_map: the model is spread over cuda:0 and cuda:1"):
        spread.train()
    assert spread.state.global_step == 0


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
