"""The model before training, seen through a LoRA model that is left exactly as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from sstoken_plugin.config import SSTokenConfig
from sstoken_plugin.history import AdapterOff
from sstoken_plugin.modes import without_trace
from sstoken_plugin.step import Phase, TokenSelection

PHASE = Phase("rel", 1.0, 0.6)
FROZEN_BY_USER = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"


@pytest.fixture
def base(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


@pytest.fixture
def fresh(base):
    """A LoRA model in training mode whose adapter has no effect yet."""
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(base), config).train()


@pytest.fixture
def trained(fresh):
    """The same with random weights in the adapter."""
    torch.manual_seed(0)
    for name, parameter in fresh.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return fresh


@pytest.fixture
def batch():
    ids = torch.randint(3, 1000, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def begin(model, batch):
    """Compute the losses of the history as a step does."""
    return TokenSelection(SSTokenConfig(), None, AdapterOff(), []).begin(model, batch, PHASE)


def state(model):
    """All of a model, and of torch's random numbers, that a scored step could change."""
    seen = {"random numbers": torch.get_rng_state().tolist(), "active adapter": model.active_adapter}
    for name, module in model.named_modules():
        seen[f"{name} training"] = module.training
        seen[f"{name} hooks"] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if isinstance(module, BaseTunerLayer):
            seen[f"{name} adapters"] = (list(module.active_adapters), module.disable_adapters)
    for name, parameter in model.named_parameters():
        seen[f"{name} requires_grad"] = parameter.requires_grad
        seen[f"{name} gradient"] = parameter.grad
        seen[f"{name} weights"] = parameter.detach().numpy().tobytes()
    return seen


def assert_unchanged(model, before):
    after = state(model)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == []


def test_a_step_leaves_the_model_as_it_was(trained, batch):
    trained.add_adapter("unused", trained.peft_config["default"])
    trained.get_parameter(FROZEN_BY_USER).requires_grad_(False)
    trained.get_submodule("base_model.model.model.layers.1").eval()
    before = state(trained)
    begin(trained, batch)
    assert_unchanged(trained, before)


def test_a_step_that_fails_leaves_the_model_as_it_was(trained, batch):
    trained.get_parameter(FROZEN_BY_USER).requires_grad_(False)
    before = state(trained)
    with pytest.raises(IndexError):
        begin(trained, {**batch, "input_ids": batch["input_ids"] + 10**6})
    assert_unchanged(trained, before)


def test_losses_of_the_history_are_those_of_the_model_without_adapter(base, trained, batch):
    labels = batch["labels"][:, 1:].flatten()
    losses = []
    for model in (base.eval(), copy.deepcopy(trained).eval()):
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        nll = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="none")
        losses.append(nll[labels != -100])
    before, after = losses
    assert (before - after).abs().max() > 0.01, "the adapter has no effect, the test would say nothing"

    step = begin(trained, batch)
    with step.observed():
        outputs = trained(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    step.loss(outputs)
    torch.testing.assert_close(step.scores.history, before, rtol=0, atol=1e-5)
    torch.testing.assert_close(step.scores.rel, before - step.scores.current, rtol=0, atol=1e-5)
    assert not step.scores.rel.requires_grad


def test_a_fresh_adapter_has_a_rel_of_zero(fresh, batch):
    fresh.eval()
    step = begin(fresh, batch)
    with step.observed():
        outputs = fresh(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    step.loss(outputs)
    assert not step.scores.rel.any()


def test_packed_samples_have_the_losses_they_have_alone(trained):
    ids = torch.randint(3, 1000, (1, 20), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, [0, 1, 2, 12, 13]] = -100
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    whole = {"input_ids": ids, "labels": labels, "position_ids": positions}
    losses = []
    for columns in (slice(None), slice(0, 12), slice(12, 20)):
        part = {key: tensor[:, columns] for key, tensor in whole.items()}
        step = begin(trained, part)
        with step.observed():
            outputs = trained(**{**part, "labels": None}, use_cache=False)
        step.loss(outputs)
        losses.append(step.scores.history)
    torch.testing.assert_close(losses[0], torch.cat(losses[1:]), rtol=0, atol=1e-5)


def test_an_adapter_without_effect_is_accepted_and_left_as_it_was(fresh):
    fresh.get_parameter(FROZEN_BY_USER).requires_grad_(False)
    before = state(fresh)
    AdapterOff.check(fresh)
    assert_unchanged(fresh, before)


def test_an_adapter_with_effect_is_refused_unless_this_training_gave_it(trained):
    with pytest.raises(ValueError, match=r"sstoken\.history: initial needs an adapter that starts without"):
        AdapterOff.check(trained)
    AdapterOff.check(trained, adapter_is_trained=True)


@pytest.mark.parametrize("adapter_is_trained", [False, True])
def test_trainable_tensors_outside_the_adapter_are_refused(fresh, adapter_is_trained):
    fresh.get_submodule("base_model.model.model.norm").weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"sstoken\.history: .* 1 tensors outside .*model\.norm\.weight"):
        AdapterOff.check(fresh, adapter_is_trained=adapter_is_trained)


def test_a_model_without_adapter_is_refused(base):
    with pytest.raises(ValueError, match=r"sstoken\.history: initial needs a LoRA adapter"):
        AdapterOff.check(base)


def test_without_trace_restores_modes_and_draws_no_random_number():
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5))).train()
    model[1].eval()
    before = torch.get_rng_state()
    with without_trace(model):
        assert torch.equal(model(torch.ones(4)), torch.ones(4))
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == [True, True, False, False]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_four_bit_layers_stay_in_training_mode():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(bitsandbytes.nn.Linear4bit(8, 8), nn.Dropout(0.5)).train()
    with without_trace(model):
        assert [module.training for module in model] == [True, False]
    assert [module.training for module in model] == [True, True]
