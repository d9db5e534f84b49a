"""What a model adds to its loss when it is given labels: it is trained on as without the plugin, beside kept tokens."""

import pytest
import torch
import transformers
from chosen_families import SIZE, VOCABULARY, build
from material import STEADY
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from sstoken_plugin.axolotl.run import NAMES, run_of
from sstoken_plugin.engine.own_loss import OwnLoss
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.build import build_history
from sstoken_plugin.selection.config import SSTokenConfig

ROUTED = {"output_router_logits": True, "num_experts_per_tok": 1}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
# Coefficients far above the usual ones, and different, so that the model's own must be read.
ADDS = {
    "mixtral": {**ROUTED, "num_local_experts": 2, "router_aux_loss_coef": 0.3},
    "qwen2_moe": {**ROUTED, "num_experts": 2, "moe_intermediate_size": 8, "router_aux_loss_coef": 0.2},
    "qwen3_moe": {**ROUTED, "num_experts": 2, "moe_intermediate_size": 8, "head_dim": 8, "router_aux_loss_coef": 0.4},
    "olmoe": {**ROUTED, "num_experts": 2, "router_aux_loss_coef": 0.1},
    "granitemoe": {**ROUTED, "num_local_experts": 2, "router_aux_loss_coef": 0.3},
    "gpt_oss": {**ROUTED, "num_local_experts": 2, "head_dim": 8, "router_aux_loss_coef": 0.9},
    "bamba": {**MAMBA, "attn_layer_indices": [1], "z_loss_coefficient": 0.05},
}
NOTHING = {
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "llama": {},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
}


# Up to transformers 5.17 the own loss of Granite MoE fails with output_router_logits.
MISSING = {kind for kind in ADDS if kind not in CONFIG_MAPPING}
if Version(transformers.__version__) < Version("5.18"):
    MISSING.add("granitemoe")


def model_of(kind, settings):
    if kind in MISSING:
        pytest.skip("this release of transformers does not have it, or not right")
    return build(CONFIG_MAPPING[kind](**SIZE, **settings))


def batch_of():
    tokens = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[0, :4], labels[1, :7], labels[1, 10:] = -100, -100, -100
    mask = torch.ones_like(tokens)
    mask[1, 10:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def ours(model, batch, items=None, **settings):
    config = SSTokenConfig(**settings)
    selection = TokenSelection(config, None, None, [2], names=NAMES)
    step = selection.begin(model, batch, Phase.of(config))
    with step.observed():
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
    return step, step.loss(outputs, None, items)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("items", [None, 5])
@pytest.mark.parametrize("kind", ADDS)
def test_all_tokens_train_as_without_the_plugin(kind, items):
    model, batch = model_of(kind, ADDS[kind]).train(), batch_of()
    counted = {} if items is None else {"num_items_in_batch": items}
    plain = model(**batch, **counted).loss
    mean = ours(model_of(kind, {**ADDS[kind], "output_router_logits": False, "z_loss_coefficient": 0.0}), batch)[1]
    assert items or abs(plain - mean) > 0.01, "the model adds nothing, the test would say nothing"
    expected = gradients(model, plain)
    _, loss = ours(model, batch, items, selector="all")
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    found = gradients(model, loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ADDS)
def test_beside_kept_tokens_it_is_the_same(kind):
    model, batch = model_of(kind, ADDS[kind]), batch_of()
    step, loss = ours(model, batch, selector="position", ratio=0.5)
    masked = torch.full_like(batch["labels"], -100)
    kept = step.layout.position[step.kept]
    masked.view(-1)[kept] = batch["labels"].view(-1)[kept]
    assert 0 < len(kept) < len(step.kept)
    torch.testing.assert_close(loss, model(**{**batch, "labels": masked}).loss, rtol=1e-5, atol=1e-5)


def test_all_logits_are_computed_where_the_addition_reads_them_and_nowhere_else():
    found = {kind: OwnLoss.of(model_of(kind, settings)) for kind, settings in ADDS.items() if kind not in MISSING}
    assert all(own.adds for own in found.values())
    assert [kind for kind, own in found.items() if own.reads_all_logits] == ["bamba"]


@pytest.mark.parametrize("kind", NOTHING)
def test_a_model_that_adds_nothing_is_not_given_labels(kind, monkeypatch):
    model = model_of(kind, NOTHING[kind])
    assert OwnLoss.of(model) == OwnLoss(adds=False, reads_all_logits=False)
    given = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args, **kwargs: given.append(kwargs.get("labels")) or forward(**kwargs)
    )
    ours(model, batch_of())
    assert given[-1] is None


def test_nothing_stays_behind():
    model, batch = model_of("mixtral", ADDS["mixtral"]), batch_of()
    before = model(**batch).loss
    ours(model, batch)
    assert not model._forward_pre_hooks
    assert "_loss_function" not in vars(model)
    assert torch.equal(model(**batch).loss, before)

    def constant(logits, labels, vocab_size, **kwargs):
        return logits.new_tensor(3.0)

    model.loss_function = constant
    with pytest.raises(ValueError, match="another loss"):
        ours(model, batch)
    assert model.loss_function is constant


DECODERS = {
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "marian": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "whisper": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_loss_of_another_kind_is_refused_by_the_name_of_the_model(kind, adapted):
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = CONFIG_MAPPING[kind](
        vocab_size=VOCABULARY, **ids, **DECODERS[kind], is_decoder=True, is_encoder_decoder=False
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    name = type(model).__name__
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=rf"^base_model: {name} computes another loss than the mean"):
        ours(model, batch_of())


@pytest.mark.parametrize("adapted", [False, True])
def test_a_decoder_with_an_encoder_is_refused_before_its_first_pass(adapted, tokenizer):
    """Without labels its forward pass fails, in words that name no key."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes))
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q"]))
    with pytest.raises(ValueError, match=r"^base_model: T5ForConditionalGeneration has an encoder .* of `plugins:`"):
        build_history(SSTokenConfig(), run_of({}), model, tokenizer)


def test_a_fused_loss_beside_an_addition_is_told_by_its_keys(monkeypatch):
    model, batch = model_of("mixtral", ADDS["mixtral"]), batch_of()
    config = SSTokenConfig()
    selection = TokenSelection(config, None, None, [2], names=NAMES)
    selection.begin(model, batch, Phase.of(config))
    forward = model.forward

    # As kernels that fuse the output head with the loss do: labels in, the whole loss out.
    def fused(**kwargs):
        outputs = forward(**{**kwargs, "labels": None})
        outputs.loss = outputs.logits.sum()
        return outputs

    monkeypatch.setattr(model, "forward", fused)
    step = selection.begin(model, batch, Phase.of(config))
    with step.observed():
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
    with pytest.raises(RuntimeError, match=r"remove keys that fuse .* liger_fused_linear_cross_entropy"):
        step.loss(outputs)


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "sample_packing": True}], ids=str)
def test_a_run_with_a_router_loss_is_plain_training_at_ratio_one(changes, config, train, tokenizer, tmp_path):
    kind = CONFIG_MAPPING["mixtral"]
    sizes = {**SIZE, "vocab_size": len(tokenizer), "initializer_range": 0.1, "max_position_embeddings": 512}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(kind(**sizes, num_local_experts=2, num_experts_per_tok=1)).save_pretrained(
        tmp_path / "mixtral"
    )
    tokenizer.save_pretrained(tmp_path / "mixtral")
    settings = {**config, **STEADY, **changes, "base_model": str(tmp_path / "mixtral"), "lora_target_linear": False}
    settings |= {"lora_target_modules": ["q_proj", "v_proj"]}
    settings |= {"overrides_of_model_config": {"output_router_logits": True, "router_aux_loss_coef": 0.5}}
    selected = train({**settings, "sstoken": {"ratio": 1.0}})
    plain = train({**settings, "plugins": []})
    assert selected.losses == pytest.approx(plain.losses, abs=2e-5)
    for name, weight in plain.weights.items():
        torch.testing.assert_close(selected.weights[name], weight, atol=2e-5, rtol=1e-4)
    kept = train({**settings, "sstoken": {"ratio": 0.5}})
    assert kept.losses != pytest.approx(plain.losses, abs=1e-3)
    assert kept.trainer.sstoken.selection.own_loss.adds
