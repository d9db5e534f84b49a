"""Histories leave the trained model exactly as it was, cost what they say, and give the losses of their weights."""

from __future__ import annotations

import copy
import gc
import os
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from sstoken_plugin.engine.modes import without_trace
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.adapter import AdapterOff
from sstoken_plugin.history.base import bytes_of
from sstoken_plugin.history.frozen import FrozenModel, without_adapter
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.history.store import LossStore
from sstoken_plugin.history.weights import KeptWeights, MovingAverage, Snapshot, round_by_chance
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout

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


def begin(model, batch, history=None):
    """Compute the losses of the history as a step does."""
    losses = HistoryLosses(history or AdapterOff())
    return TokenSelection(SSTokenConfig(), None, losses, []).begin(model, batch, PHASE)


def second_adapter(model):
    """A history with an adapter of its own over the base weights that it shares with the model."""
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return FrozenModel(get_peft_model(without_adapter(model), config), "another adapter", shared_with=model)


HISTORIES = {
    "adapter off": lambda model: AdapterOff(),
    "kept": lambda model: KeptWeights(model, "kept"),
    "moving average": lambda model: MovingAverage(model, 0.9),
    "snapshot": lambda model: Snapshot(model, 1),
    "second adapter": second_adapter,
    "second model": lambda model: FrozenModel(copy.deepcopy(model), "a copy"),
}


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


@pytest.fixture(params=HISTORIES)
def make(request):
    return HISTORIES[request.param]


def nudge(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1


def test_a_step_leaves_the_model_as_it_was(trained, batch, make):
    trained.add_adapter("unused", trained.peft_config["default"])
    trained.get_parameter(FROZEN_BY_USER).requires_grad_(False)
    trained.get_submodule("base_model.model.model.layers.1").eval()
    before = state(trained)
    with torch.random.fork_rng():
        history = make(trained)
    assert_unchanged(trained, before)
    nudge(trained)
    before = state(trained)
    begin(trained, batch, history)
    assert_unchanged(trained, before)
    if history.changes:
        history.after_step(trained, 1)
        assert_unchanged(trained, before)


def test_a_step_that_fails_leaves_the_model_as_it_was(trained, batch, make):
    trained.get_parameter(FROZEN_BY_USER).requires_grad_(False)
    history = make(trained)
    nudge(trained)
    before = state(trained)
    with pytest.raises(IndexError):
        begin(trained, {**batch, "input_ids": batch["input_ids"] + 10**6}, history)
    assert_unchanged(trained, before)


def test_a_failed_exchange_is_undone(trained, batch, monkeypatch):
    from sstoken_plugin.history import weights

    history = KeptWeights(trained, "kept")
    nudge(trained)
    before = state(trained)
    exchange, calls = weights._exchange, []

    def third_time_fails(one, other):
        calls.append(one)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        exchange(one, other)

    monkeypatch.setattr(weights, "_exchange", third_time_fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        begin(trained, batch, history)
    assert_unchanged(trained, before)


def test_an_interrupt_meets_the_trained_weights(trained):
    """Axolotl saves the model when Ctrl-C arrives."""
    history = KeptWeights(trained, "kept")
    weight = trained.get_parameter(FROZEN_BY_USER)
    first = weight.detach().clone()
    nudge(trained)
    now = weight.detach().clone()
    met = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: met.append(weight.detach().clone()))
    try:
        with history.active(trained):
            os.kill(os.getpid(), signal.SIGINT)
            assert torch.equal(weight, first)
            assert not met
        assert len(met) == 1
        assert torch.equal(met[0], now)
    finally:
        signal.signal(signal.SIGINT, previous)


def live_bytes():
    """Bytes of every tensor that is alive, shared storage counted once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and type(thing) in (torch.Tensor, nn.Parameter):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def test_a_history_adds_the_memory_that_it_names(trained, make):
    adapter = bytes_of(p for p in trained.parameters() if p.requires_grad)
    before = live_bytes()
    history = make(trained)
    added = live_bytes() - before
    # Small buffers, of the rotary embedding, are not weights.
    assert added == pytest.approx(history.memory, abs=1024)
    if isinstance(history, KeptWeights):
        assert history.memory == adapter
    with history.active(trained):
        # The random generators, which get back the state that they had.
        assert live_bytes() - before - added <= 1024 + torch.get_rng_state().nbytes


def test_memory_of_a_second_adapter_is_that_of_its_weights(trained):
    assert second_adapter(trained).memory == 4 * 3 * 2 * (64 + 32)


def test_the_moving_average_is_the_formula(trained):
    history = MovingAverage(trained, 0.8)
    expected = {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}
    for step in range(1, 4):
        nudge(trained)
        history.after_step(trained, step)
        expected = {name: 0.8 * mean + 0.2 * trained.get_parameter(name).detach() for name, mean in expected.items()}
    with history.active(trained):
        for name, mean in expected.items():
            torch.testing.assert_close(trained.get_parameter(name).detach(), mean)


def test_a_moving_average_in_bfloat16_does_not_stand_still():
    """Each step is far below half a unit in the last place: rounding to the nearest would lose all of them."""
    model = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    history = MovingAverage(model, 0.99)
    nn.init.constant_(model.weight, 1.0625)
    for step in range(1, 101):
        history.after_step(model, step)
    mean = dict(history.tensors(model))["weight"]
    assert mean.dtype == torch.bfloat16
    assert mean.float().mean().item() == pytest.approx(1.0625 - 0.0625 * 0.99**100, abs=1e-3)


def test_rounding_by_chance_keeps_the_mean_and_repeats():
    values = torch.full((100_000,), -1.0 - 2**-10)
    before = torch.get_rng_state()
    rounded = round_by_chance(values, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(rounded.float().tolist()) == {-1.0, -1.0 - 2**-7}
    assert rounded.float().mean().item() == pytest.approx(values[0].item(), abs=2e-5)
    assert torch.equal(rounded, round_by_chance(values, seed=1))
    assert not torch.equal(rounded, round_by_chance(values, seed=2))


def test_a_snapshot_is_taken_every_so_many_steps(trained):
    history = Snapshot(trained, 2)
    kept = []
    for step in range(1, 6):
        nudge(trained)
        history.after_step(trained, step)
        kept.append(
            round(
                (trained.get_parameter(FROZEN_BY_USER) - dict(history.tensors(trained))[FROZEN_BY_USER]).max().item(), 3
            )
        )
    assert kept == [0.1, 0, 0.1, 0, 0.1]


def test_a_streamed_model_gives_the_same_losses(base, trained, batch):
    here, streamed = FrozenModel(copy.deepcopy(base), "here"), FrozenModel(copy.deepcopy(base), "streamed")
    streamed.place(base, stream=True)
    one, other = (begin(trained, batch, history)._history_nll for history in (here, streamed))
    torch.testing.assert_close(one, other)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


def test_a_patched_method_runs_on_the_twin(trained, batch):
    """Fused kernels replace methods of single modules."""
    expected = begin(trained, batch)._history_nll
    mlp = trained.get_submodule("base_model.model.model.layers.0.mlp")
    mlp.forward = type(mlp).forward.__get__(mlp)
    history = FrozenModel(without_adapter(trained), "the base", shared_with=trained)
    torch.testing.assert_close(begin(trained, batch, history)._history_nll, expected)


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


@pytest.mark.parametrize("positions", [False, True], ids=["", "positions that count on"])
def test_a_batch_of_which_a_part_is_kept_has_the_losses_that_it_has_whole(trained, batch, positions, tmp_path):
    """A token in the midst of the second sample is masked; a third one is as plain as the first."""
    batch["attention_mask"][1, 6] = 0
    third = {name: column[:1] + (column[:1] >= 3) for name, column in batch.items()}
    batch = {name: torch.cat([column, third[name]]) for name, column in batch.items()}
    if positions:
        batch["position_ids"] = torch.arange(12).repeat(3, 1)
    layout = BatchLayout.of(batch)
    whole, _ = HistoryLosses(AdapterOff()).of(trained, batch, layout)
    losses = HistoryLosses(AdapterOff(), LossStore(tmp_path, b"history"))
    alone = {name: column[:1] for name, column in batch.items()}
    losses.of(trained, alone, BatchLayout.of(alone))
    for kept in (1, 3):
        found, hits = losses.of(trained, batch, layout)
        assert hits == kept
        torch.testing.assert_close(found, whole, atol=2e-3, rtol=0)


def test_losses_that_are_not_to_be_kept_are_rounded_as_if(trained, batch, tmp_path):
    losses = HistoryLosses(AdapterOff(), LossStore(tmp_path, b"history"))
    layout = BatchLayout.of(batch)
    first, _ = losses.of(trained, batch, layout, keeps=False)
    second, hits = losses.of(trained, batch, layout)
    assert hits == 0
    assert torch.equal(first, second)
    assert losses.of(trained, batch, layout)[1] == 2


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


def test_switching_the_adapter_off_serves_where_it_has_no_effect_yet(fresh):
    fresh.get_parameter(FROZEN_BY_USER).requires_grad_(False)
    before = state(fresh)
    assert AdapterOff.serves(fresh)
    assert_unchanged(fresh, before)


def test_switching_the_adapter_off_does_not_serve_if_it_has_an_effect_unless_this_training_gave_it(trained):
    assert not AdapterOff.serves(trained)
    assert AdapterOff.serves(trained, adapter_is_trained=True)


@pytest.mark.parametrize("adapter_is_trained", [False, True])
def test_switching_the_adapter_off_does_not_serve_if_more_trains(fresh, base, adapter_is_trained):
    fresh.get_submodule("base_model.model.model.norm").weight.requires_grad_(True)
    assert not AdapterOff.serves(fresh, adapter_is_trained=adapter_is_trained)
    assert not AdapterOff.serves(base)


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
