"""Looking at a model changes nothing: neither what it computes while it is watched, nor what it is after it."""

import math
import random

import numpy as np
import pytest
import torch
from chosen_families import LLAMA, SIZE, VOCABULARY, build
from peft import LoraConfig, get_peft_model
from test_own_loss import batch_of, ours
from transformers import CONFIG_MAPPING, RwkvConfig, RwkvForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.adapter import AdapterOff
from sstoken_plugin.history.build import build_history
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.history.traces import traces_of
from sstoken_plugin.history.weights import KeptWeights, MovingAverage, Snapshot
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout

# Their attention adds the mask of an indexer where its config names an attention that it knows.
INDEXED = {
    "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 2, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip


def of_kind(kind, settings, attention):
    if kind not in CONFIG_MAPPING:
        pytest.skip("this release of transformers does not have it")
    default = CONFIG_MAPPING[kind]()
    known = {name: value for name, value in {**SIZE, **settings}.items() if hasattr(default, name)}
    return build(CONFIG_MAPPING[kind](**known), attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa", "axk2"])
def test_a_model_that_reads_the_name_of_its_attention_computes_the_same(kind, attention):
    model, batch = of_kind(kind, INDEXED, attention), batch_of()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    probe = PromptAttention.of(model, -1)
    plain = model(**inputs, use_cache=False).logits
    with probe.measure(BatchLayout.of(batch).prompt):
        assert torch.equal(model(**inputs, use_cache=False).logits, plain)
    assert probe.mass is not None


class Shy(LlamaAttention):
    """Computes something else while its forward pass is not the one of its class."""

    def forward(self, *args, **kwargs):
        output, weights = super().forward(*args, **kwargs)
        return (output * 2 if "forward" in vars(self) else output), weights


@pytest.fixture
def shy():
    model = build(LLAMA, "sdpa")
    model.model.layers[-1].self_attn.__class__ = Shy
    return model


def selection_of(model, **settings):
    config = SSTokenConfig(**settings)
    return TokenSelection(config, PromptAttention.of(model, -1), None, [2]), Phase.of(config)


def test_a_model_that_notices_is_refused_where_attention_ranks(shy):
    selection, phase = selection_of(shy, selector="attention")
    with pytest.raises(ValueError, match=r"^sstoken\.selector: attention .* while attention layer 1 of 2 .* is watc"):
        selection.begin(shy, batch_of(), phase)


def test_a_model_that_notices_is_no_longer_watched_where_attention_does_not_rank(shy, caplog):
    selection, phase = selection_of(shy, selector="position", warmup_selector="all", ratio=1.0)
    batch = batch_of()
    step = selection.begin(shy, batch, phase)
    with step.observed():
        outputs = shy(**{key: value for key, value in batch.items() if key != "labels"})
    torch.testing.assert_close(step.loss(outputs), shy(**batch).loss)
    assert step.scores.attention is None
    assert "prompt attention is not logged" in caplog.text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_change(value):
    """Such tokens rank last; the first batch must not stop the run for them."""
    model = build(LLAMA, "sdpa")
    selection, phase = selection_of(model, selector="attention")
    batch = batch_of()
    with torch.no_grad():
        model.lm_head.weight[batch["labels"][0, -1]] = value
    selection.begin(model, batch, phase)
    assert selection.attention is not None


def rwkv():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    return RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY, rescale_every=2, **sizes)).train()


def adapted_rwkv():
    lora = LoraConfig(r=2, target_modules=["key", "output"], init_lora_weights=False)
    return get_peft_model(rwkv(), lora).train()


HISTORIES = {
    "first weights": lambda model: KeptWeights(model, "the first weights"),
    "snapshot": lambda model: Snapshot(model, 2),
    "moving average": lambda model: MovingAverage(model, 0.5),
    "adapter off": lambda model: AdapterOff(),
}


@pytest.mark.parametrize(
    ("make", "name"),
    [*((rwkv, name) for name in HISTORIES if name != "adapter off"), *((adapted_rwkv, name) for name in HISTORIES)],
)
def test_a_model_that_rewrites_its_weights_when_its_mode_changes_gets_them_back(make, name):
    model, batch = make(), batch_of()
    batch.pop("attention_mask")
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = HistoryLosses(HISTORIES[name](model))
    layout = BatchLayout.of(batch)
    first, again = (losses.of(model, batch, layout)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert all(module.training for module in model.modules())


class Counting(torch.nn.Module):
    """Counts its passes in a buffer, as statistics of activations do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, *args):
        self.passes += 1
        return self.inner(*args)


class Drifting(torch.nn.Module):
    """Writes to a weight behind autograd's back."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def forward(self, *args):
        with torch.no_grad():
            self.weight.data.add_(1)
        return self.inner(*args)


@pytest.mark.parametrize(("wrapper", "changed"), [(Counting, "passes"), (Drifting, "weight")])
@pytest.mark.parametrize("history", ["initial", "ema"])
def test_what_a_history_would_leave_changed_stops_the_run_at_its_start(wrapper, changed, history, tokenizer):
    model = build(LLAMA).train()
    model.model.norm = wrapper(model.model.norm)
    with pytest.raises(ValueError, match=rf"^sstoken\.history: {history}: a pass .* leaves model\.norm\.{changed}"):
        build_history(SSTokenConfig(history=history), Run(""), model, tokenizer)
    # What needs no history is not asked.
    ours(model, batch_of(), selector="position")


def test_a_plain_model_passes(tokenizer):
    model = build(LLAMA).train()
    assert build_history(SSTokenConfig(), Run(""), model, tokenizer) is not None


def test_a_batch_without_response_tokens_proves_nothing(shy):
    selection, phase = selection_of(shy, selector="attention")
    batch = batch_of()
    selection.begin(shy, {**batch, "labels": torch.full_like(batch["labels"], -100)}, phase)
    with pytest.raises(ValueError, match="computes something else while"):
        selection.begin(shy, batch, phase)


class ShyInTraining(LlamaAttention):
    def forward(self, *args, **kwargs):
        output, weights = super().forward(*args, **kwargs)
        return (output * 2 if self.training and "forward" in vars(self) else output), weights


class DropsByItself(LlamaAttention):
    """Draws random numbers in a function that the probe calls a second time."""

    def forward(self, *args, **kwargs):
        self.config._attn_implementation = "dropping"
        return super().forward(*args, **kwargs)


def dropping(module, query, key, value, mask, **kwargs):
    output, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **{**kwargs, "dropout": 0.0})
    return torch.nn.functional.dropout(output, 0.3, module.training), weights


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", [ShyInTraining, DropsByItself])
def test_a_model_that_notices_while_it_trains_is_refused(kind, layer):
    """In the last layer, a number drawn too much shows in the next step only."""
    AttentionInterface.register("dropping", dropping)
    model = build(LLAMA, "sdpa").train()
    model.model.layers[layer].self_attn.__class__ = kind
    config = SSTokenConfig(selector="attention", attention_layer=layer)
    selection = TokenSelection(config, PromptAttention.of(model, layer), None, [2])
    with pytest.raises(ValueError, match="computes something else while"):
        selection.begin(model, batch_of(), Phase.of(config))


def test_the_proof_leaves_buffers_and_random_state_as_they_were():
    class Counting(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, hidden):
            if self.training:
                self.seen += 1
                torch.nn.functional.dropout(hidden, 0.5)
            return self.inner(hidden)

    model = build(LLAMA, "sdpa").train()
    model.model.norm = Counting(model.model.norm).train()
    selection, phase = selection_of(model, selector="attention")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    selection.begin(model, batch_of(), phase)
    assert selection.attention is not None
    assert model.model.norm.seen == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_history_draws_no_random_numbers_of_the_training():
    class Noisy(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, hidden):
            random.random()
            np.random.rand()
            return self.inner(hidden) + 1e-3 * torch.randn_like(hidden)

    model, batch = build(LLAMA).train(), batch_of()
    model.model.norm = Noisy(model.model.norm)
    history = HistoryLosses(KeptWeights(model, "the first weights"))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    history.of(model, batch, BatchLayout.of(batch))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_values_that_changed_places_are_a_trace():
    class Ring(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.register_buffer("ring", torch.tensor([1.0, 2.0, 0.5]))
            self.register_buffer("long", torch.arange(10_000.0))

        def forward(self, hidden):
            self.ring.copy_(self.ring.roll(1))
            self.long.copy_(self.long.roll(4096))
            return self.inner(hidden)

    model = build(LLAMA).train()
    model.model.norm = Ring(model.model.norm)
    assert traces_of(KeptWeights(model, "the first weights"), model) == ["model.norm.long", "model.norm.ring"]
