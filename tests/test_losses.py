"""Losses of response tokens and their gradient, against the model's own."""

from __future__ import annotations

import pytest
import torch
from chosen_families import FAMILIES, HYBRIDS, LLAMA, SINKS, build
from counting import products_over
from torch.nn import functional
from transformers import LlamaForCausalLM

from sstoken_plugin.engine.losses import mean_kept
from sstoken_plugin.engine.output_head import ProvenWays, ResponseHead
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout


class HeadlessLlama(LlamaForCausalLM):
    """A model that does not say where its output head is."""

    def get_output_embeddings(self):
        return None


MODELS = {**FAMILIES, **SINKS, **HYBRIDS, "llama without a head module": LLAMA}


@pytest.fixture(params=MODELS)
def model(request):
    if "without" not in request.param:
        return build(MODELS[request.param]).train()
    torch.manual_seed(0)
    return HeadlessLlama(LLAMA)


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA)


def batch_of(prompts=(4, 2), lengths=(12, 9)):
    """Two samples of random tokens, padded right."""
    tokens = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    column, length, prompt = torch.arange(12), torch.tensor(lengths)[:, None], torch.tensor(prompts)[:, None]
    real = column < length
    labels = torch.where(real & (column >= prompt), tokens, -100)
    return {"input_ids": tokens, "attention_mask": real.long(), "labels": labels}


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def response_nll(model, batch, ways=None):
    layout = BatchLayout.of(batch)
    head = ResponseHead(model, layout, ways)
    with head.narrowed():
        logits = model(**inputs_of(batch)).logits
    return head.nll(logits)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_losses_are_those_of_the_full_logits(model):
    batch = batch_of()
    logits, labels = model(**inputs_of(batch)).logits[:, :-1], batch["labels"][:, 1:]
    full = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    expected = full[labels.flatten() != -100]
    torch.testing.assert_close(response_nll(model, batch), expected, rtol=0, atol=1e-5)


def test_loss_and_gradient_are_those_of_masked_labels(model):
    batch = batch_of()
    layout = BatchLayout.of(batch)
    kept = torch.arange(len(layout.position)) % 3 != 1
    masked = batch["labels"].clone()
    masked.view(-1)[layout.position[~kept]] = -100

    own = model(**inputs_of(batch), labels=masked).loss
    ours = mean_kept(response_nll(model, batch), kept, None)
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients(model, ours), gradients(model, own), rtol=0, atol=1e-5)


def test_loss_divides_by_the_given_number_of_tokens(llama):
    nll = response_nll(llama, batch_of())
    kept = torch.ones_like(nll, dtype=torch.bool)
    for items in (40, torch.tensor(40)):
        torch.testing.assert_close(mean_kept(nll, kept, items), nll.sum() / 40)


def test_prompt_tokens_never_meet_the_head(llama):
    """A row of a frozen head costs a product forward and one back to the hidden states."""
    batch = batch_of()
    layout = BatchLayout.of(batch)
    kept = torch.arange(len(layout.position)) % 3 != 1
    llama.get_output_embeddings().weight.requires_grad_(False)
    ways = ProvenWays()
    response_nll(llama, batch, ways)  # The head is looked at once.
    with products_over(64) as rows:
        mean_kept(response_nll(llama, batch, ways), kept, None).backward()
    # The model itself still asks for the logits of one.
    assert sum(rows) == 2 * len(kept) + 1


def test_a_batch_without_response_tokens_has_no_loss_and_a_gradient_of_zero(model):
    batch = batch_of(prompts=(12, 9))
    nll = response_nll(model, batch)
    assert nll.shape == (0,)
    loss = mean_kept(nll, torch.zeros(0, dtype=torch.bool), None)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(model, loss).values())


@pytest.mark.parametrize("phase", [Phase("position", 0.0, 0.6), Phase("threshold", 0.0, 1.0, least=-3.0)], ids=str)
def test_a_step_without_response_tokens_has_no_loss_and_a_gradient_of_zero(model, phase):
    batch = batch_of(prompts=(12, 9))
    step = TokenSelection(SSTokenConfig(), None, None, []).begin(model, batch, phase)
    with step.observed():
        outputs = model(**inputs_of(batch))
    loss = step.loss(outputs)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(model, loss).values())
    assert step.kept.shape == (0,)


def test_nothing_stays_on_the_head(llama):
    head, layout = llama.get_output_embeddings(), BatchLayout.of(batch_of())
    with ResponseHead(llama, layout).narrowed():
        assert head._forward_pre_hooks
    assert not head._forward_pre_hooks

    with pytest.raises(IndexError), ResponseHead(llama, layout).narrowed():
        llama(input_ids=torch.full((2, 12), 64))
    assert not head._forward_pre_hooks


def test_a_forward_pass_with_ligers_fused_loss_gives_the_same_loss(llama):
    """Liger replaces `forward`; without labels it calls the head, and no kernel that needs a GPU."""
    from types import MethodType

    from liger_kernel.transformers.model.llama import lce_forward

    labels = torch.randint(3, 64, (2, 12))
    input_ids = labels.clone()
    labels[:, :5] = -100
    selection = TokenSelection(SSTokenConfig(selector="position"), None, None, [2])

    def loss():
        batch = {"input_ids": input_ids, "labels": labels}
        step = selection.begin(llama, batch, Phase.of(selection.config))
        with step.observed():
            return step.loss(llama(input_ids=input_ids))

    llama.train()
    ordinary = loss()
    llama.forward = MethodType(lce_forward, llama)
    torch.testing.assert_close(loss(), ordinary)
