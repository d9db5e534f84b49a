"""When the losses may be computed without the model's own logits."""

from __future__ import annotations

import logging

import pytest
import torch
from chosen_families import FAMILIES, LLAMA, SINKS, build
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sstoken_plugin.engine import losses, output_head
from sstoken_plugin.engine.kernels import liger_fused_linear_cross_entropy
from sstoken_plugin.engine.linear_nll import linear_nll
from sstoken_plugin.engine.output_head import ProvenWays, ResponseHead, why_not
from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.training.trainer import TokenSelectionTrainer

MORE_THAN_LINEAR = {"gemma2", "granite", "cohere", "cohere2"}


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA)


def reason(model):
    return why_not(linear_nll, model, model.get_output_embeddings(), torch.arange(3, 11))


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
    ways = ProvenWays()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ResponseHead(model, layout, ways)
    assert [record.message for record in caplog.records if "output head" in record.message] == [
        "ssToken: linear_nll does not serve the output head, which costs time and memory: its model does more to "
        "logits than the head itself."
    ]


def test_what_one_selection_has_found_out_is_not_believed_by_the_next(llama):
    """In one process a model may be trained, changed, and trained again."""
    tokens = torch.randint(3, 64, (1, 12))
    layout = BatchLayout.of({"input_ids": tokens, "labels": tokens})
    ways = ProvenWays()
    assert ways.choose(llama, layout) is linear_nll
    llama.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    assert ways.choose(llama, layout) is linear_nll
    assert ProvenWays().choose(llama, layout) is None


def wrong_gradient(hidden, weight, bias, target):
    return 2 * linear_nll(hidden, weight, bias, target) - linear_nll(hidden, weight, bias, target).detach()


def failing(hidden, weight, bias, target):
    raise RuntimeError("no driver")


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (wrong_gradient, "does more to logits"),
        (failing, "no driver"),
        (liger_fused_linear_cross_entropy, "a trained head is a sum over all tokens"),
    ],
)
def test_a_kernel_that_is_wrong_or_fails_is_left_for_our_own_losses(llama, kernel, why, caplog):
    tokens = torch.randint(3, 64, (2, 12))
    batch = {"input_ids": tokens, "labels": tokens}
    layout = BatchLayout.of(batch)
    losses = []
    for kernels in ([], [kernel]):
        head = ResponseHead(llama, layout, ProvenWays(), kernels)
        with head.narrowed():
            losses.append(head.nll(llama(tokens).logits))
        assert torch.autograd.grad(losses[-1].sum(), llama.lm_head.weight)[0].any()
    assert torch.equal(*losses)
    assert kernel.__name__ in caplog.text
    assert why in caplog.text


def test_losses_that_are_not_finite_are_not_called_a_matter_of_the_architecture(llama, caplog):
    """A row of the embedding that holds infinities, as after an overflow."""
    tokens = torch.randint(3, 64, (2, 12))
    with torch.no_grad():
        llama.get_input_embeddings().weight.fill_(torch.inf)
    with (
        caplog.at_level(logging.WARNING),
        ResponseHead(llama, BatchLayout.of({"input_ids": tokens, "labels": tokens})).narrowed(),
    ):
        llama(tokens)
    assert "losses that are not finite" in caplog.text
    assert "more to logits" not in caplog.text


FULL = {"adapter": None, "learning_rate": 0.005}
PACKED = {"sample_packing": True, "pad_to_sequence_len": True}
CHECKPOINTED = {"gradient_checkpointing": True}


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"adapter": "qlora", "load_in_4bit": True},
        FULL,
        PACKED,
        CHECKPOINTED,
        {**FULL, **PACKED, **CHECKPOINTED},
    ],
    ids=["LoRA", "QLoRA", "full, tied", "packed", "checkpointing", "full, tied, packed, checkpointing"],
)
def test_losses_and_gradients_of_a_run_are_those_of_the_models_own_logits(config, train, monkeypatch, way):
    """Over two accumulated micro-batches of an optimizer step."""
    recorded = []
    take_step = TokenSelectionTrainer.training_step

    def record(self, model, inputs, *args, **kwargs):
        loss = take_step(self, model, inputs, *args, **kwargs)
        recorded.append((loss.detach().clone(), [p.grad.clone() for p in self.model.parameters() if p.requires_grad]))
        return loss

    monkeypatch.setattr(TokenSelectionTrainer, "training_step", record)
    config = {**config, **way, "max_steps": 1, "sstoken": {"warmup_ratio": 0.0, "report": False}}
    runs = []
    for fast in (True, False):
        recorded.clear()
        if not fast:
            monkeypatch.setattr(output_head, "why_not", lambda *arguments: "this test wants the model's own")
        run = train(config)
        chosen = run.trainer.sstoken.selection.ways._chosen[run.model.get_output_embeddings()]
        assert (set(chosen.values()) == {linear_nll}) == fast
        runs.append(list(recorded))
    assert len(runs[0]) == 2
    torch.testing.assert_close(*runs, rtol=0, atol=1e-5)


def test_losses_for_which_no_gradient_is_asked_are_the_same(monkeypatch):
    monkeypatch.setattr(losses, "rows_at_a_time", lambda vocabulary: 7)
    logits, target = torch.randn(30, 50), torch.randint(50, (30,))
    expected = losses.token_nll(logits, target)
    with torch.no_grad():
        torch.testing.assert_close(losses.token_nll(logits, target), expected)
        assert losses.token_nll(logits[:0], target[:0]).shape == (0,)
