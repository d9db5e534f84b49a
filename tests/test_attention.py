"""Prompt attention against the full attention matrices that transformers returns in eager mode."""

from __future__ import annotations

import families
import family_checks
import pytest
import torch
from chosen_families import FAMILIES, HYBRIDS, LLAMA, SINKS, SIZE, SOFT_CAPPED, build
from counting import tensor_sizes
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BloomConfig,
    DiffLlamaConfig,
    FalconConfig,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from sstoken_plugin.engine.attention import PromptAttention, softmax_layers
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout


def random_samples(lengths=((13, 6), (9, 3))):
    """Samples as (token ids, prompt length)."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(3, 64, (n,), generator=generator).tolist(), prompt) for n, prompt in lengths]


def chat_samples(tokenizer):
    samples = []
    for user, assistant in [
        ("Which colours does the rainbow have?", "Red, green and violet."),
        ("Name a river.", "The Danube, on its way to the Black Sea."),
    ]:
        chat = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
        samples.append((tokenizer.apply_chat_template(chat, return_dict=False), len(prompt)))
    return samples


def padded(samples, side="right"):
    width = max(len(ids) for ids, _ in samples)

    def row(values, fill):
        gap = [fill] * (width - len(values))
        return gap + values if side == "left" else values + gap

    return {
        "input_ids": torch.tensor([row(ids, 0) for ids, _ in samples]),
        "attention_mask": torch.tensor([row([1] * len(ids), 0) for ids, _ in samples]),
        "labels": torch.tensor([row([-100] * prompt + ids[prompt:], -100) for ids, prompt in samples]),
    }


def packed(samples):
    rows = {
        "input_ids": [ids for ids, _ in samples],
        "labels": [[-100] * prompt + ids[prompt:] for ids, prompt in samples],
        "position_ids": [range(len(ids)) for ids, _ in samples],
    }
    return {key: torch.tensor([[x for part in parts for x in part]]) for key, parts in rows.items()}


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def measured(model, batch, attention_layer=-1):
    """Prompt attention of each response token, and the number of the layer it was measured in."""
    probe, layout = PromptAttention.of(model, attention_layer), BatchLayout.of(batch)
    with probe.measure(layout.prompt), torch.no_grad():
        model(**inputs_of(batch), use_cache=False)
    return probe.mass.flatten()[layout.position], probe.layer.module.layer_idx


def expected(eager_model, batch, layer):
    """The same from the full matrix: the token's row, summed over the prompt, averaged over heads."""
    layout = BatchLayout.of(batch)
    with torch.no_grad():
        outputs = eager_model(**inputs_of(batch), use_cache=False, output_attentions=True)
    mass = outputs.attentions[layer].mean(1) @ layout.prompt[:, :, None].float()
    return mass.flatten()[layout.position]


def assert_equal(mass, reference):
    torch.testing.assert_close(mass, reference, rtol=0, atol=1e-5)
    assert reference.std() > 0.01, "the case says little: attention hardly differs between tokens"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_mass_is_that_of_the_attention_matrix(config, attention, side):
    batch = padded(random_samples(), side)
    mass, layer = measured(build(config, attention), batch)
    assert_equal(mass, expected(build(config), batch, layer))


@pytest.mark.parametrize("config", [*SOFT_CAPPED.values(), *SINKS.values()], ids=[*SOFT_CAPPED, *SINKS])
def test_mass_is_that_of_a_soft_capped_attention_matrix_or_one_with_sinks(config):
    batch = padded(random_samples())
    mass, layer = measured(build(config), batch)
    assert_equal(mass, expected(build(config), batch, layer))


def test_mass_is_that_of_the_attention_matrix_in_smollm2(smollm2, tokenizer):
    sdpa, eager = (
        AutoModelForCausalLM.from_pretrained(smollm2, attn_implementation=name).eval() for name in ("sdpa", "eager")
    )
    for side in ("right", "left"):
        batch = padded(chat_samples(tokenizer), side)
        reference = expected(eager, batch, 29)
        for model in (sdpa, eager):
            mass, layer = measured(model, batch)
            assert layer == 29
            assert_equal(mass, reference)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_samples_have_the_mass_they_have_alone(name, attention):
    model, samples = build(FAMILIES[name], attention), random_samples(((13, 6), (9, 3), (7, 5)))
    alone = [measured(model, packed([sample]))[0] for sample in samples]
    torch.testing.assert_close(measured(model, packed(samples))[0], torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention_layer", [0, 1, -2, -1])
def test_the_layer_asked_for_is_measured(attention_layer):
    batch = padded(random_samples())
    mass, layer = measured(build(LLAMA, "sdpa"), batch, attention_layer)
    assert layer == attention_layer % 2
    assert_equal(mass, expected(build(LLAMA), batch, layer))


def test_layers_that_see_the_whole_sample_are_preferred():
    for name, layer in [("gemma3", 0), ("gemma3, sliding", 1), ("mistral, sliding", 1)]:
        assert PromptAttention.of(build(FAMILIES[name]), -1).layer.module.layer_idx == layer, name
    with pytest.raises(ValueError, match="out of range: this model has 1"):
        PromptAttention.of(build(FAMILIES["gemma3"]), 1)


@pytest.mark.parametrize("attention_layer", [2, -3])
def test_a_layer_out_of_range_is_refused_by_the_name_of_its_key(attention_layer):
    with pytest.raises(ValueError, match=r"sstoken\.attention_layer.* -2 to 1"):
        PromptAttention.of(build(LLAMA), attention_layer)


OUT_OF_REACH = {
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
    "gpt-j": GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=1, eos_token_id=2),
    "falcon": FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
}


@pytest.mark.parametrize("config", OUT_OF_REACH.values(), ids=OUT_OF_REACH)
def test_a_model_whose_attention_is_out_of_reach_is_told_what_to_set(config):
    model = build(config)
    before = [sorted(vars(module)) for module in model.modules()]
    with pytest.raises(ValueError, match=r"set sstoken\.selector"):
        PromptAttention.of(model, -1)
    assert [sorted(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("config", HYBRIDS.values(), ids=HYBRIDS)
def test_a_hybrid_is_measured_in_its_last_softmax_layer(config):
    model, batch = build(config, "sdpa"), padded(random_samples(((13, 6),)))
    assert [layer.name for layer in softmax_layers(model)] == ["model.layers.1.self_attn"]
    layout = BatchLayout.of(batch)
    mass, _ = measured(model, batch)
    with torch.no_grad():
        outputs = build(config)(**inputs_of(batch), use_cache=False, output_attentions=True)
    # Layers without softmax attention have no matrix.
    [matrix] = [attention for attention in outputs.attentions if attention is not None]
    reference = (matrix.mean(1) @ layout.prompt[:, :, None].float()).flatten()[layout.position]
    assert_equal(mass, reference)


def looped(attention="eager"):
    """A model that runs its layers several times, one of them last."""
    if "hrm_text" not in CONFIG_MAPPING:
        pytest.skip("this release of transformers does not have it")
    loops = {"num_layers_per_stack": 1, "H_cycles": 2, "L_cycles": 2, "head_dim": 8}
    return build(CONFIG_MAPPING["hrm_text"](**{**SIZE, "num_key_value_heads": 4, **loops}), attention)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention_layer", [0, 2, -2, -1])
def test_each_call_of_a_layer_that_is_run_several_times_is_one(attention_layer, checkpointing):
    model, batch = looped("sdpa"), padded(random_samples())
    with torch.no_grad():
        own = looped()(**inputs_of(batch), use_cache=False, output_attentions=True).attentions
    probe, layout = PromptAttention.of(model, attention_layer), BatchLayout.of(batch)
    assert probe.description.startswith(f"attention layer {attention_layer % len(own)} of {len(own)} (")
    assert f"call {probe.layer.call + 1} of" in probe.description
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with probe.measure(layout.prompt):
        model(**batch, use_cache=False).loss.backward()
    # The mass is that of the forward pass: the recomputation runs the calls in another order.
    mass = probe.mass.flatten()[layout.position]
    reference = (own[attention_layer].mean(1) @ layout.prompt[:, :, None].float()).flatten()[layout.position]
    torch.testing.assert_close(mass, reference, rtol=0, atol=1e-5)


def test_a_module_that_calls_attention_twice_is_measured_at_its_last_call():
    config = DiffLlamaConfig(**SIZE)
    batch = padded(random_samples())
    model = build(config, "sdpa")
    calls = softmax_layers(model)
    assert [layer.call for layer in calls] == [0, 1, 0, 1]
    mass, layer = measured(model, batch)
    assert (layer, PromptAttention.of(model, -1).layer.call) == (1, 1)
    assert_equal(mass, expected(build(config), batch, -1))


class Subscribing(LlamaAttention):
    """Takes its attention function as models did before there was `get_interface`."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


def test_a_model_that_looks_its_attention_up_in_the_older_way_is_measured():
    model, batch = build(LLAMA, "sdpa"), padded(random_samples())
    for layer in model.model.layers:
        layer.self_attn.__class__ = Subscribing
    mass, layer = measured(model, batch)
    assert_equal(mass, expected(build(LLAMA), batch, layer))


def test_nothing_stays_behind():
    model, batch = build(LLAMA, "sdpa").train(), padded(random_samples())
    # As engines and fused kernels put their own forward pass on a module.
    own = model.model.layers[0].self_attn.forward = model.model.layers[0].self_attn.forward

    def state():
        instances = [(sorted(vars(module)), vars(module).get("config")) for module in model.modules()]
        return instances, model.config.to_dict(), dict(vars(AttentionInterface))

    before = state()
    for layer in (0, 1):
        probe = PromptAttention.of(model, layer)
        assert state() == before
        with probe.measure(BatchLayout.of(batch).prompt):
            model(**inputs_of(batch))
        assert state() == before
        with pytest.raises(IndexError), probe.measure(BatchLayout.of(batch).prompt):
            model(input_ids=batch["input_ids"] + 64)
        assert state() == before
    assert model.model.layers[0].self_attn.forward is own
    assert all(module.training for module in model.modules())


def test_the_output_is_unchanged():
    model, batch = build(LLAMA, "sdpa"), padded(random_samples())
    plain = model(**inputs_of(batch)).logits
    with PromptAttention.of(model, -1).measure(BatchLayout.of(batch).prompt):
        assert torch.equal(model(**inputs_of(batch)).logits, plain)


@pytest.mark.parametrize(("attention", "linear"), [("sdpa", True), ("eager", False)])
def test_no_tensor_of_a_step_is_of_tokens_by_tokens(attention, linear):
    """Eager attention makes such matrices itself, which shows that one would be seen."""
    model, batch = build(LLAMA, attention).train(), padded(random_samples(lengths=((512, 200),)))
    config = SSTokenConfig(selector="attention")
    selection = TokenSelection(config, PromptAttention.of(model, -1), history=None, end_tokens=[2])
    with tensor_sizes() as sizes:
        step = selection.begin(model, batch, Phase.of(config))
        with step.observed():
            outputs = model(**inputs_of(batch), use_cache=False)
        step.loss(outputs).backward()
    assert (max(sizes) < 512 * 512) == linear


def test_dropout_of_attention_leaves_the_mass_and_the_random_numbers():
    config = LlamaConfig(**SIZE, attention_dropout=0.5)
    model, batch = build(config), padded(random_samples())
    reference = expected(model, batch, 0)
    model.train()
    probe, layout = PromptAttention.of(model, 0), BatchLayout.of(batch)
    torch.manual_seed(3)
    plain = model(**inputs_of(batch)).logits
    torch.manual_seed(3)
    with probe.measure(layout.prompt):
        assert torch.equal(model(**inputs_of(batch)).logits, plain)
    assert_equal(probe.mass.flatten()[layout.position], reference)


@pytest.mark.parametrize("backward_inside", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_one_mass_and_the_same_gradients(use_reentrant, backward_inside):
    model, batch = build(LLAMA, "sdpa").train(), padded(random_samples())

    model(**batch).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    probe, layout = PromptAttention.of(model, -1), BatchLayout.of(batch)
    with probe.measure(layout.prompt):
        loss = model(**batch).loss
        mass = probe.mass
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert probe.mass is mass, "the recomputation in the backward pass was measured too"
    assert_equal(mass.flatten()[layout.position], expected(build(LLAMA), batch, 1))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=0, atol=1e-6, msg=name)


def mass_of(model, batch, attention_layer=-1):
    layout = BatchLayout.of(batch)
    probe = PromptAttention.of(model, attention_layer)
    with probe.measure(layout.prompt), torch.no_grad():
        model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
    return probe


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_a_function_that_is_called_with_its_arguments_in_a_row_is_measured(name):
    class InARow(LlamaAttention):
        def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
            shape = (*hidden_states.shape[:-1], -1, self.head_dim)
            projections = (self.q_proj, self.k_proj, self.v_proj)
            query, key, value = (one(hidden_states).view(shape).transpose(1, 2) for one in projections)
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            function = ALL_ATTENTION_FUNCTIONS.get_interface(name, modeling_llama.eager_attention_forward)
            more = (0.0, self.scaling) if name == "sdpa" else (self.scaling, 0.0)
            output, weights = function(self, query, key, value, attention_mask, *more)
            return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    batch = padded(random_samples())
    expected = mass_of(build(LLAMA, name), batch).mass
    model = build(LLAMA, name)
    for layer in model.model.layers:
        layer.self_attn.__class__ = InARow
    torch.testing.assert_close(mass_of(model, batch).mass, expected)


def test_a_function_that_calls_another_one_counts_once():
    def logging_attention(module, *args, **kwargs):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("logging", logging_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("logging", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    batch = padded(random_samples())
    for layer in (-1, -2, 0, 1):
        probe = mass_of(build(LLAMA, "logging"), batch, layer)
        torch.testing.assert_close(probe.mass, mass_of(build(LLAMA, "sdpa"), batch, layer).mass)
        assert "of 2 (" in probe.description


def test_layers_that_attend_to_blocks_of_tokens_are_no_layers_of_tokens():
    """DeepSeek V4: a row of some hundred tokens has keys for blocks of them beside those of its tokens."""
    if "deepseek_v4" not in families.ALL:
        pytest.skip("this release of transformers does not have it")
    family = families.ALL["deepseek_v4"]
    model = family_checks.build_for_training(family, family.config())
    kinds = model.config.layer_types
    layers = softmax_layers(model)
    assert any("compressed" in kind for kind in kinds)
    assert not any("compressed" in kinds[layer.module.layer_idx] for layer in layers)
    batch = padded(random_samples(((200, 60), (150, 50))))
    if not layers:
        with pytest.raises(ValueError, match=r"sstoken\.selector: rel and sstoken\.warmup_selector: all"):
            PromptAttention.of(model, -1)
    selection = TokenSelection(SSTokenConfig(selector="position"), None, None, [2])
    step = selection.begin(model, batch, Phase.of(selection.config))
    with step.observed():
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
    assert torch.isfinite(step.loss(outputs))


class WithRegisters(LlamaAttention):
    """Puts two tokens of its own before those of long rows, as models with registers do."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        rows, length, width = hidden_states.shape
        if length < 100:
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        longer = torch.cat([hidden_states.new_ones(rows, 2, width), hidden_states], 1)
        places = [torch.cat([part[:, :1], part[:, :1], part], 1) for part in position_embeddings]
        mask = torch.full((length + 2, length + 2), -1e9).triu(1).expand(rows, 1, -1, -1)
        output, weights = super().forward(longer, places, mask, **kwargs)
        return output[:, 2:], weights


class InTrainingOnly(LlamaAttention):
    """Is left out of a pass by chance, as layers with layerdrop are."""

    drops = False

    def forward(self, hidden_states, *args, **kwargs):
        return (hidden_states, None) if self.drops else super().forward(hidden_states, *args, **kwargs)


@pytest.mark.parametrize("kind", [WithRegisters, InTrainingOnly])
def test_where_a_pass_cannot_be_measured_attention_steps_aside_or_the_run_is_refused(kind, caplog, monkeypatch):
    short, long = padded(random_samples()), padded(random_samples(((120, 40), (110, 30))))
    for settings in ({"selector": "attention"}, {"selector": "rel", "warmup_selector": "all"}):
        model = build(LLAMA, "sdpa")
        monkeypatch.setattr(InTrainingOnly, "drops", False)
        model.model.layers[-1].self_attn.__class__ = kind
        config = SSTokenConfig(**settings)
        selection = TokenSelection(config, PromptAttention.of(model, -1), None, [2])
        for batch in (short, long):
            step = selection.begin(model, batch, Phase.of(config))
            monkeypatch.setattr(InTrainingOnly, "drops", batch is long)
            with step.observed():
                outputs = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
            if batch is long and config.ranks_by_attention:
                with pytest.raises(ValueError, match=r"^sstoken\.selector: attention needs .*self_attn"):
                    step.loss(outputs)
            else:
                step.loss(outputs)
                assert (step.scores.attention is None) == (batch is long)
    assert caplog.text.count("prompt attention is not logged") == 1


def test_where_the_first_batch_cannot_be_checked_training_goes_on_and_says_so(caplog, monkeypatch):
    def without_memory(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("sstoken_plugin.engine.step.watching_changes", without_memory)
    model, batch, config = build(LLAMA, "sdpa"), padded(random_samples()), SSTokenConfig(selector="attention")
    selection = TokenSelection(config, PromptAttention.of(model, -1), None, [2])
    for _ in range(2):
        step = selection.begin(model, batch, Phase.of(config))
        with step.observed():
            outputs = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
        step.loss(outputs)
        assert step.scores.attention is not None
    assert caplog.text.count("could not be checked that watching attention changes nothing") == 1
    assert "out of memory" in caplog.text


def test_a_layer_that_runs_more_often_in_training_is_not_measured_at_another_call():
    class Looped(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden, **kwargs):
            for _ in range(4 if self.training else 2):
                hidden = self.layer(hidden, **kwargs)
            return hidden

    model = build(LLAMA, "sdpa")
    model.model.layers[-1] = Looped(model.model.layers[-1])
    probe = mass_of(model.eval(), padded(random_samples()))
    assert probe.mass is not None
    probe = mass_of(model.train(), padded(random_samples()))
    assert probe.mass is None
    assert "4 times in a pass, not 2" in probe.why_not


KINDS = {"full_attention": True, "hybrid": True, "hybrid_sliding": False, "chunked_attention": False}


@pytest.mark.parametrize(("kind", "whole"), KINDS.items())
def test_kinds_of_layers_are_told_by_their_names(kind, whole):
    model = build(LLAMA, "sdpa")
    model.config.layer_types = ["sliding_attention", kind]
    places = [layer.module.layer_idx for layer in softmax_layers(model)]
    assert places == ([1] if whole else [0, 1])
