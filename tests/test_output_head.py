"""When the losses may be computed without the model's own logits."""

from __future__ import annotations

import logging

import pytest
import torch
from families import FAMILIES, LLAMA, SINKS, build
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sstoken_plugin.output_head import ResponseHead, why_not_linear
from sstoken_plugin.samples import BatchLayout

MORE_THAN_LINEAR = {"gemma2", "granite", "cohere", "cohere2"}


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA)


def reason(model):
    return why_not_linear(model, model.get_output_embeddings())


@pytest.mark.parametrize("family", {**FAMILIES, **SINKS})
def test_models_that_scale_or_cap_their_logits_are_told_from_those_that_do_not(family):
    found = reason(build({**FAMILIES, **SINKS}[family]))
    assert (found is not None) == (family in MORE_THAN_LINEAR), found


@pytest.mark.parametrize(
    ("adapter", "linear"), [({}, True), ({"modules_to_save": ["lm_head"]}, False)], ids=["frozen", "saved"]
)
def test_an_adapter_beside_the_head_changes_nothing(llama, adapter, linear):
    model = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **adapter))
    assert (reason(model) is None) == linear


def test_a_head_that_another_library_hooks_into_is_left_to_it(llama):
    llama.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    assert "hooks" in reason(llama)


@pytest.mark.parametrize("gradients", [True, False])
def test_looking_at_a_head_leaves_no_trace(llama, gradients):
    llama.train().requires_grad_(gradients)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(gradients):
        assert reason(llama) is None
    assert not llama.lm_head._forward_pre_hooks
    assert llama.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_a_model_that_does_more_says_so_once(caplog):
    model = build(FAMILIES["gemma2"])
    tokens = torch.randint(3, 64, (1, 12))
    layout = BatchLayout.of({"input_ids": tokens, "labels": tokens})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ResponseHead(model, layout)
    assert [record.message for record in caplog.records if "output head" in record.message] == [
        "ssToken: the output head runs on all response tokens, kept or not: its model does more to logits than the "
        "head itself."
    ]
