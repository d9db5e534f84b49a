"""A model must predict each token from those before it in its sample; where it does not, a run is refused."""

import pytest
import torch
import transformers
from chosen_families import FAMILIES, LLAMA, build
from conftest import write

from sstoken_plugin.axolotl.run import NAMES
from sstoken_plugin.engine.own_loss import OwnLoss
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.engine.visibility import refuse_sight_of_the_future, samples_see_each_other
from sstoken_plugin.selection.config import SSTokenConfig

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
SEES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1,
        "num_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip


def seeing(class_name, text=None, vision=None):
    if not hasattr(transformers, class_name):
        pytest.skip("this release of transformers does not have it")
    kind = getattr(transformers, class_name)
    torch.manual_seed(0)
    config = kind.config_class(text_config={**SMALL, **(text or {})}, vision_config={**SEES, **(vision or {})})
    return kind._from_config(config, attn_implementation="sdpa").eval()


def paligemma():
    return seeing("PaliGemmaForConditionalGeneration", {"model_type": "gemma", "head_dim": 16}, {"projection_dim": 32})


def qwen(name):
    rope = {"rope_type": "default", "type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return seeing(name, {"rope_parameters": rope, "rope_scaling": rope}, {"hidden_size": 32, "out_hidden_size": 32,
                                                                          "embed_dim": 32})  # fmt: skip


def gemma():
    text = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    return seeing("Gemma3ForConditionalGeneration", text)


def packed():
    """Two rows of two samples."""
    tokens = torch.randint(10, 60, (2, 24), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    for start, stop in ((0, 5), (12, 16)):
        labels[:, start:stop] = -100
    return {"input_ids": tokens, "labels": labels, "position_ids": torch.arange(12).repeat(2)[None].repeat(2, 1)}


def begin(model, batch, **settings):
    config = SSTokenConfig(**settings)
    TokenSelection(config, None, None, [2], names=NAMES).begin(model, batch, Phase.of(config))


def test_a_model_that_sees_the_future_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"^base_model: PaliGemmaForConditionalGeneration sees tokens that are"):
        OwnLoss.of(paligemma(), NAMES)


def test_a_mask_without_a_direction_is_found_whatever_the_class():
    model = build(LLAMA, "eager")
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, forward=forward, attention_mask=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ValueError, match="LlamaForCausalLM sees tokens that are still to come"):
        refuse_sight_of_the_future(model)


@pytest.mark.parametrize("name", ["llama", "mistral, sliding", "gemma2", "cohere2", "gpt_oss"])
def test_causal_models_are_not_refused(name):
    if name not in FAMILIES:
        pytest.skip("no such family among the chosen ones")
    refuse_sight_of_the_future(build(FAMILIES[name]))


@pytest.mark.parametrize("name", ["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_packing_is_refused_where_samples_of_a_row_see_each_other(name):
    model, batch = qwen(name), packed()
    for settings in ({}, {"selector": "position"}, {"selector": "rel", "warmup_selector": "all"}):
        with pytest.raises(ValueError, match=rf"^sample_packing: {name} lets .* set sample_packing: false\."):
            begin(model, batch, **settings)
    # Plain training does the same there, and these are to equal it.
    begin(model, batch, selector="all")
    begin(model, batch, ratio=1.0)
    del batch["position_ids"]
    begin(model, batch)


@pytest.mark.parametrize("make", [gemma, lambda: build(LLAMA, "sdpa")], ids=["gemma3", "llama"])
def test_packing_is_not_refused_where_they_do_not(make):
    model, batch = make(), packed()
    assert samples_see_each_other(model, batch) is False
    begin(model, batch)


def test_a_row_of_one_sample_shows_nothing_and_is_asked_again():
    model, batch = qwen("Qwen2VLForConditionalGeneration"), packed()
    config = SSTokenConfig(selector="position")
    selection = TokenSelection(config, None, None, [2], names=NAMES)
    selection.begin(model, {**batch, "position_ids": torch.arange(24)[None].repeat(2, 1)}, Phase.of(config))
    with pytest.raises(ValueError, match="sample_packing"):
        selection.begin(model, batch, Phase.of(config))


def test_an_ordinary_packed_run_trains(config, train):
    block = {"warmup_ratio": 0.5, "warmup_selector": "all"}
    # With labels on the first token of each sample, which is predicted from the sample before while all is kept.
    run = train({**config, "sample_packing": True, "max_steps": 2, "train_on_inputs": True, "sstoken": block})
    assert run.lines[-1]["sstoken/selected_ratio"] > 0.5
    assert write
