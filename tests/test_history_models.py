"""Every kind of history on real Axolotl runs, against the losses of the weights that it should have."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from chosen_families import LLAMA, build
from material import STEADY
from peft import LoraConfig, PeftModel, get_peft_model
from reference import past_weights
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from sstoken_plugin.engine.modes import without_trace
from sstoken_plugin.history.adapter import AdapterOff, has_effect
from sstoken_plugin.history.frozen import without_adapter
from sstoken_plugin.history.losses import HistoryLosses

FULL = {"adapter": None, "learning_rate": 0.005}
QLORA = {"adapter": "qlora", "load_in_4bit": True}


@pytest.fixture
def seen(monkeypatch):
    """The trained weights, the batch and the history's losses, each time that they are asked for."""
    found = []
    of = HistoryLosses.of

    def remember(self, model, batch, layout, **options):
        weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        losses, hits = of(self, model, batch, layout, **options)
        found.append((weights, {key: value.clone() for key, value in batch.items()}, losses.clone()))
        return losses, hits

    monkeypatch.setattr(HistoryLosses, "of", remember)
    return found


@pytest.fixture
def other_checkpoint(tiny_llama, tokenizer, tmp_path):
    """A full checkpoint of a smaller model with the same tokenizer."""
    torch.manual_seed(2)
    config = AutoModelForCausalLM.from_pretrained(tiny_llama).config
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = 32, 2, 48
    config.head_dim = 8
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


def losses_of(model, batch):
    """Losses of the response tokens, the plain way."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with without_trace(model):
        logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten()
    return functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


LORA: dict = {}
VARIANT = {"peft_use_dora": True, "peft_use_rslora": True}
EMBEDDINGS = {
    "lora_modules_to_save": ["embed_tokens", "lm_head"],
    "lora_target_linear": False,
    "lora_target_modules": ["q_proj"],
}
PISSA = {"peft_init_lora_weights": "pissa"}
PACKED = {**FULL, "sample_packing": True, "gradient_accumulation_steps": 1}
OWN_PAST = {
    "initial": {},
    "ema": {"history": "ema", "history_ema_decay": 0.7},
    "snapshot": {"history": "snapshot", "history_update_steps": 2},
    "ema, cpu": {"history": "ema", "history_ema_decay": 0.7, "history_device": "cpu"},
}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        *[(changes, kind) for changes in (LORA, QLORA, FULL) for kind in ("initial", "ema", "snapshot")],
        (VARIANT, "initial"),
        (VARIANT, "ema"),
        (EMBEDDINGS, "initial"),
        (EMBEDDINGS, "snapshot"),
        (PISSA, "initial"),
        (PACKED, "ema, cpu"),
    ],
    ids=str,
)
def test_the_past_is_the_weights_that_were(config, train, seen, changes, kind):
    block = {"warmup_ratio": 0.0, "report": False, **OWN_PAST[kind]}
    settings = {**config, "max_steps": 5, **changes, "sstoken": block}
    run = train(settings)
    accumulation = settings["gradient_accumulation_steps"]
    assert len(seen) == 5 * accumulation
    model = copy.deepcopy(run.model)
    differs = False
    past = past_weights(kind.split(",")[0], [weights for weights, _, _ in seen], accumulation)
    for (current, batch, losses), weights in zip(seen, past, strict=True):
        model.load_state_dict(current, strict=False)
        now = losses_of(model, batch)
        model.load_state_dict(weights, strict=False)
        expected = losses_of(model, batch)
        torch.testing.assert_close(losses, expected, rtol=0, atol=2e-5)
        differs |= bool((now - expected).abs().max() > 1e-3)
    assert differs, "the weights did not change, the test would say nothing"


def check_given(seen, model):
    model.eval()
    for _, batch, losses in seen:
        torch.testing.assert_close(losses, losses_of(model, batch), rtol=0, atol=2e-5)


def test_a_run_that_starts_from_an_adapter_keeps_that_adapter(config, train, seen, tiny_llama, trained_adapter):
    run = train({**config, "lora_model_dir": trained_adapter, "sstoken": {"warmup_ratio": 0.0}})
    check_given(seen, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), trained_adapter))
    trained = sum(weight.numel() * 4 for weight in run.weights.values())
    assert run.trainer.sstoken.selection.history.history.memory == trained


@pytest.mark.parametrize("changes", [LORA, QLORA, FULL], ids=["lora", "qlora", "full"])
def test_the_history_can_be_an_adapter_over_the_same_base(config, train, seen, tiny_llama, trained_adapter, changes):
    run = train({**config, **changes, "sstoken": {"history": trained_adapter, "warmup_ratio": 0.0}})
    if changes is QLORA:
        # The adapter of the history over the quantised weights of a run that trains nothing.
        idle = train({**config, **changes, "plugins": [], "learning_rate": 0.0, "lora_model_dir": trained_adapter})
        model = idle.model
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), trained_adapter)
    check_given(seen, model)
    history = run.trainer.sstoken.selection.history.history
    adapter = 4 * 2 * 3 * ((64 + 64) + (128 + 64))
    assert history.memory == adapter + (changes is FULL) * 4 * sum(p.numel() for p in run.model.parameters())
    saved = {file.name for file in Path(config["output_dir"]).iterdir()}
    assert "sstoken_history" not in saved
    if changes is not FULL:
        assert run.model.peft_config.keys() == {"default"}


def test_a_base_that_is_loaded_again_is_of_the_same_revision(
    config, train, seen, tiny_llama, other_checkpoint, trained_adapter, tmp_path, monkeypatch
):
    """As a hub's cache keeps it: the run names the first revision, and there is a newer one."""
    cached = tmp_path / "models--some--model"
    for name, folder in (("first", tiny_llama), ("main", other_checkpoint)):
        shutil.copytree(folder, cached / "snapshots" / name)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / name).write_text(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = {"base_model": "some/model", "tokenizer_config": str(tiny_llama), "revision_of_model": "first"}
    train({**config, **FULL, **named, "sstoken": {"history": trained_adapter, "warmup_ratio": 0.0}})
    check_given(seen, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), trained_adapter))


@pytest.mark.parametrize("changes", [LORA, QLORA, FULL], ids=["lora", "qlora", "full"])
def test_the_history_can_be_another_model(config, train, seen, other_checkpoint, changes):
    run = train({**config, **changes, "sstoken": {"history": other_checkpoint, "warmup_ratio": 0.0}})
    quantised = getattr(run.model.config, "quantization_config", None)
    assert (quantised is not None) == (changes is QLORA)
    check_given(seen, AutoModelForCausalLM.from_pretrained(other_checkpoint, quantization_config=quantised))


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.3}, QLORA], ids=["dropout", "qlora"])
def test_a_given_history_trains_as_none_does(config, train, trained_adapter, changes):
    """Loading it draws random numbers and adds modules over the same weights: nothing may reach the training."""
    plain = train({**config, **STEADY, **changes, "plugins": []})
    given = train({**config, **STEADY, **changes, "sstoken": {"history": trained_adapter, "ratio": 1.0}})
    assert given.losses == pytest.approx(plain.losses, abs=2e-5)
    for name, weight in plain.weights.items():
        torch.testing.assert_close(given.weights[name], weight, atol=2e-5, rtol=1e-4)


def test_reference_keeps_what_is_learnable_and_not_yet_learnt(config, train, steps, other_checkpoint):
    block = {"selector": "reference", "history": other_checkpoint, "ratio": 0.5, "keep_eos": False}
    train({**config, "sstoken": block})
    assert len(steps) >= 8
    for step, _ in steps:
        excess = step.scores.current - step.scores.history
        for sample in range(len(step.layout.lengths)):
            own = step.layout.sample == sample
            kept = step.kept[own]
            assert kept.sum() == -(-own.sum() // 2)
            assert kept.all() or excess[own][kept].min() >= excess[own][~kept].max()


@pytest.fixture
def attention_class():
    """Axolotl rewrites the forward pass of the class for its kernels, and not back."""
    forward = LlamaAttention.forward
    yield
    LlamaAttention.forward = forward
    if hasattr(LlamaAttention, "_original_forward"):
        del LlamaAttention._original_forward


def test_a_full_checkpoint_runs_beside_the_kernels_of_lora(config, train, seen, other_checkpoint, attention_class):
    kernels = {"lora_qkv_kernel": True, "lora_o_kernel": True, "max_steps": 1}
    forward = LlamaAttention.forward
    train({**config, **kernels, "sstoken": {"history": str(other_checkpoint), "warmup_ratio": 0.0}})
    assert LlamaAttention.forward is not forward, "the kernels are not there, the test would say nothing"
    LlamaAttention.forward = forward
    check_given(seen, AutoModelForCausalLM.from_pretrained(other_checkpoint))


def test_a_base_that_is_loaded_again_has_the_settings_of_the_run(config, train, trained_adapter):
    rope = {"rope_type": "default", "rope_theta": 10.0}
    run = train(
        {
            **config, **FULL, "max_steps": 1, "overrides_of_model_config": {"rope_parameters": rope},
            "sstoken": {"history": trained_adapter},
        }
    )  # fmt: skip
    history = run.trainer.sstoken.selection.history.history.model
    assert history.get_base_model().config.rope_parameters == run.model.config.rope_parameters == rope


def test_a_small_effect_of_an_adapter_is_one():
    lora = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(build(LLAMA), LoraConfig(r=64, lora_alpha=1, init_lora_weights=False, **lora))
    assert has_effect(model)
    assert not AdapterOff.serves(model)
    plain = get_peft_model(build(LLAMA), LoraConfig(r=4, **lora))
    for dtype in (torch.float32, torch.bfloat16):
        assert AdapterOff.serves(plain.to(dtype))


def test_a_twin_of_a_compiled_model_runs_its_own_modules():
    model = get_peft_model(build(LLAMA), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for layer in model.get_base_model().model.layers:
        layer._compiled_call_impl = lambda *args, **kwargs: pytest.fail("the other model's layer was run")
    twin = without_adapter(model)
    assert twin(input_ids=torch.arange(5)[None]).logits.shape[:2] == (1, 5)
