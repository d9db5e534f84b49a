"""Bad input stops before a model is loaded, with one sentence that names the key and the fix."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import AXOLOTL, load, write
from material import write_with_other_tokens
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from sstoken_plugin.axolotl import cli, compatibility, refusals
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.training.setup import refuse_spread


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"ratio": 0}, ["sstoken.ratio", "greater than 0", "0.6"]),
        ({"ratio": "0"}, ["sstoken.ratio", "greater than 0", "0.6"]),
        ({"sstoken": {"ratio": 0.5}}, ["sstoken.sstoken is not a key", "inside of another"]),
        ({"selector": "rho1"}, ["sstoken.selector: 'rho1'", "'reference'", "remove the key"]),
        ({"ratio": 1.5}, ["sstoken.ratio", "1.5", "less than or equal to 1"]),
        ({"ratio": True}, ["sstoken.ratio", "True"]),
        ({"ratio": 60}, ["sstoken.ratio: 60 is not allowed", "write 0.6."]),
        ({"ratio": "60%"}, ["sstoken.ratio: 60% is not allowed", "write 0.6."]),
        ({"ratio": "0,6"}, ["sstoken.ratio: 0,6 is not allowed", "write 0.6."]),
        ({"ratio": float("nan")}, ["sstoken.ratio: nan is not allowed", "write a number such as 0.6."]),
        ({"gamma": "50 %"}, ["sstoken.gamma: 50 % is not allowed", "write 0.5."]),
        ({"history_ema_decay": 99}, ["sstoken.history_ema_decay: 99", "write 0.99."]),
        ({"warmup_ratio": 10}, ["sstoken.warmup_ratio: 10", "write 0.1."]),
        ({"ratio": "many"}, ["sstoken.ratio", "many", "number"]),
        ({"ratio": float("nan")}, ["sstoken.ratio", "nan"]),
        ({"gamma": -0.1}, ["sstoken.gamma", "-0.1"]),
        ({"warmup_ratio": 2}, ["sstoken.warmup_ratio"]),
        ({"warmup_selector": "rel"}, ["sstoken.warmup_selector", "'rel'", "attention"]),
        ({"selector": "sstokn"}, ["sstoken.selector", "did you mean 'sstoken'"]),
        ({"attention_layer": 1.5}, ["sstoken.attention_layer"]),
        ({"attention_layer": True}, ["sstoken.attention_layer"]),
        ({"history_ema_decay": 1}, ["sstoken.history_ema_decay"]),
        ({"history_update_steps": 0}, ["sstoken.history_update_steps"]),
        ({"seed": -1}, ["sstoken.seed", "-1"]),
        ({"keep_eos": "perhaps"}, ["sstoken.keep_eos"]),
        ({"ratio ": 0.5}, ["sstoken: 'ratio ' is not a key", "sstoken.ratio"]),
        ({"selector": -1}, ["sstoken.selector: -1", "remove the key for its default, 'sstoken'"]),
        ({"rato": 0.5}, ["sstoken.rato", "nearest", "sstoken.ratio"]),
        ({"warm_up_ratio": 0.5}, ["sstoken.warm_up_ratio", "sstoken.warmup_ratio"]),
        ({"ratio": 2, "gamma": 2}, ["sstoken.ratio", "sstoken.gamma"]),
        ([0.6], ["sstoken", "block"]),
        ("on", ["sstoken", "block"]),
        ({"selector": "reference"}, ["sstoken.selector: reference", "sstoken.history", "path"]),
        ({"selector": "reference", "history": "ema"}, ["sstoken.selector: reference", "ema"]),
        ({"history": "ema", "history_cache": "cache"}, ["sstoken.history_cache", "sstoken.history: ema", "initial"]),
        ({"history_device": "gpu"}, ["sstoken.history_device", "'gpu'", "'model'", "remove the key"]),
        ({"history": ""}, ["sstoken.history"]),
        ({"history_cache": ""}, ["sstoken.history_cache"]),
        *(
            ({"history_cache": text}, [f"sstoken.history_cache: {text!r}", "write auto or false"])
            for text in ("none", "None", "AUTO", "false ", "off", "true")
        ),
        ({"min_probability": "100%"}, ["sstoken.min_probability: '100%' is not allowed", "0.01"]),
    ],
    ids=str,
)
def test_a_bad_block_is_refused(block, words):
    with pytest.raises(ValueError, match="sstoken") as error:
        SSTokenConfig.from_block(block)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sstoken": {"ratio": 7}}, ["sstoken.ratio"]),
        ({"sstoken_ratio": 0.5}, ["sstoken_ratio", "sstoken: {ratio"]),
        ({"ss_token": {"ratio": 0.5}}, ["ss_token", "sstoken: {ratio"]),
        ({"ss_token_gama": 0.5}, ["ss_token_gama", "sstoken: {gamma"]),
        ({"sstokens": {"ratio": 0.5}}, ["sstokens", "sstoken"]),
        ({"ssstoken": {"ratio": 0.5}}, ["ssstoken", "sstoken"]),
        ({"ratio": 0.5}, ["ratio is no key of Axolotl's", "`sstoken:`", "`ratio: 0.5`"]),
        ({"gamma": 0.5}, ["gamma is no key of Axolotl's"]),
        ({"selector": "random"}, ["selector is no key of Axolotl's", "`selector: random`"]),
        ({"keep_eos": False}, ["keep_eos is no key of Axolotl's"]),
        ({"history_cache": "cache"}, ["history_cache is no key of Axolotl's"]),
        ({"sstoken": {"history_cache": "s3://bucket/cache"}}, ["sstoken.history_cache: s3://bucket", "an address"]),
        ({"sstoken": {"history_cache": "$NO_SUCH/x"}}, ["sstoken.history_cache: $NO_SUCH/x", "variable $NO_SUCH"]),
        ({"sstoken": {"history_cache": "${NO_SUCH}/x"}}, ["sstoken.history_cache", "variable ${NO_SUCH}"]),
        ({"sstoken": {"history": "hf://org/model"}}, ["sstoken.history: hf://org/model", "an address"]),
        ({"sstoken": {"history": "$NO_SUCH"}}, ["sstoken.history: $NO_SUCH", "variable $NO_SUCH"]),
        ({"sstoken": {"history": "org/Model-1B"}}, ["sstoken.history: org/Model-1B", "hf download org/Model-1B"]),
        ({"rl": "dpo"}, ["rl: dpo"]),
        ({"reward_model": True}, ["reward_model"]),
        ({"process_reward_model": True}, ["process_reward_model"]),
        ({"trainer_cls": "my.Trainer"}, ["trainer_cls"]),
        ({"use_eaft": True}, ["use_eaft"]),
        ({"use_dft": True}, ["use_dft"]),
        ({"liger_use_token_scaling": True}, ["liger_use_token_scaling"]),
        ({"diffusion_lm": {"from_causal_lm": True}}, ["diffusion_lm", "sets it from `diffusion:`"]),
        ({"diffusion_decision": {"layout": "prompt_slots"}}, ["diffusion_decision"]),
        ({"adapter": "mixlora"}, ["mixlora"]),
        ({"orpo_alpha": 0.1}, ["orpo_alpha"]),
        ({"relora": True}, ["relora"]),
        ({"processor_type": "AutoProcessor"}, ["processor_type", "feeds images", "remove `processor_type`"]),
        ({"label_smoothing_factor": 0.1}, ["label_smoothing_factor"]),
        ({"context_parallel_size": 2}, ["context_parallel_size"]),
        (
            {"context_parallel_size": "2"},
            ["context_parallel_size: 2 splits a sample", "size in the block context_para"],
        ),
        # A release that knows the block has copied its size to the key before we are asked.
        ({"context_parallel": {"size": 2}}, ["context_parallel", "size: 2 splits a sample"]),
        ({"context_parallel": {"size": "2"}}, ["context_parallel", "size: 2 splits a sample"]),
        ({"tensor_parallel_size": 2}, ["tensor_parallel_size"]),
        ({"expert_parallel_size": 2}, ["expert_parallel_size: 2 splits the experts"]),
        (
            {"sstoken": {"history_cache": "cache"}, "scaling_softmax": True},
            ["scaling_softmax changes", "history_cache"],
        ),
        ({"sstoken": {"history_cache": "cache"}, "qat": {"weight_dtype": "int8"}}, ["qat changes", "history_cache"]),
        ({"pretraining_dataset": [{"path": "x"}]}, ["pretraining_dataset"]),
        ({"streaming": True}, ["streaming"]),
        ({"sstoken": {"history": "emma"}}, ["sstoken.history: emma", "did you mean 'ema'"]),
        ({"sstoken": {"history": "~nobody-of-that-name/x"}}, ["sstoken.history: ~nobody-of-that-name/x is no folder"]),
        ({"sstoken": {"history_cache": f"{__file__}/below"}}, ["sstoken.history_cache", "cannot be a folder"]),
        ({"sstoken": {"history_cache": "\0"}}, ["sstoken.history_cache: '\\x00' cannot be a folder"]),
        ({"sstoken": {"history_cache": "x" * 300}}, ["sstoken.history_cache: 'xxx", "cannot be a folder"]),
        ({"sstoken": {"history": "x" * 300}}, ["sstoken.history: xxx", "is no folder"]),
        ({"sstoken": {"history": "/"}}, ["sstoken.history: /", "adapter_config.json", "config.json"]),
        ({"lisa_n_layers": 2, "adapter": None}, ["lisa_n_layers", "sstoken.selector: attention"]),
        ({"fsdp_config": {"reshard_after_forward": True}, "fsdp_version": 1}, ["fsdp_version: 1", "fsdp_version: 2"]),
        ({"fsdp_config": {"reshard_after_forward": True, "fsdp_version": 1}}, ["fsdp_version: 1", "fsdp_version: 2"]),
    ],
    ids=str,
)
def test_a_yaml_that_cannot_be_combined_is_refused(config, tmp_path, changes, words):
    with pytest.raises((ValidationError, ValueError)) as error:
        load({**config, **changes}, tmp_path)
    for word in words:
        assert word in str(error.value)


def test_the_size_in_the_block_is_read_where_nobody_has_copied_it():
    for size in (2, "2"):
        with pytest.raises(ValueError, match=r"context_parallel\.size: 2 splits a sample"):
            compatibility.check({"context_parallel": {"size": size}})
    for block in ({"size": 1}, {"size": None}, {}, None, True):
        compatibility.check({"context_parallel": block})


def test_adapters_that_cannot_be_switched_off_are_refused():
    for adapter in ("mixlora", "an-adapter-to-come"):
        with pytest.raises(ValueError, match=rf"adapter: {adapter} may train.*set `adapter: lora` or `adapter: qlora`"):
            compatibility.check({"adapter": adapter})
    # A wrong type is left to Axolotl.
    for adapter in (None, "", "lora", "qlora", ["lora"]):
        compatibility.check({"adapter": adapter})


@pytest.mark.parametrize(
    ("settings", "is_first_fsdp"),
    [
        ({}, False),
        ({"fsdp_config": {"reshard_after_forward": True}}, AXOLOTL < (0, 20)),
        ({"fsdp": ["full_shard"]}, AXOLOTL < (0, 20)),
        ({"fsdp_config": {"fsdp_version": 2}}, False),
        ({"fsdp_config": {"version": 2}}, False),
        ({"fsdp_config": {"offload_params": False}, "fsdp_version": 2}, False),
        ({"fsdp_config": {"offload_params": False}, "fsdp_version": "2"}, False),
        ({"fsdp": ["full_shard"], "fsdp_config": {"fsdp_version": 2}}, False),
        ({"fsdp_config": {"version": 1}}, True),
        # Wrong types are left to Axolotl.
        ({"fsdp_config": "yes"}, False),
    ],
    ids=str,
)
def test_the_release_tells_which_fsdp_is_meant(settings, is_first_fsdp):
    if is_first_fsdp:
        with pytest.raises(ValueError, match=r"fsdp_version: 1 flattens weights.*set `fsdp_version: 2`"):
            compatibility.check(settings)
    else:
        compatibility.check(settings)


@pytest.mark.parametrize(
    "block",
    [{"history": "/a/checkpoint"}, {"history_cache": "losses"}, {"history_cache": "losses", "selector": "attention"}],
    ids=str,
)
def test_zero_3_is_told_from_the_file_and_from_its_content(config, tmp_path, monkeypatch, block):
    settings = {"zero_optimization": {"stage": 3}}
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(settings))
    monkeypatch.setattr(compatibility, "_refuse_unfit_folder", lambda *arguments: None)
    for deepspeed in (str(file), settings):
        with pytest.raises(ValueError, match=rf"sstoken\.{next(iter(block))}.*ZeRO stage 3.*use stage 2"):
            compatibility.check({**config, "deepspeed": deepspeed, "sstoken": block})
    settings["zero_optimization"]["stage"] = 2
    compatibility.check({**config, "deepspeed": settings, "sstoken": block})
    for stage in ("auto", float("inf"), [3], None):
        compatibility.check({**config, "deepspeed": {"zero_optimization": {"stage": stage}}, "sstoken": block})
    for wrong in (True, [3], {"zero_optimization": True}, "no/such.json"):
        compatibility.check({**config, "deepspeed": wrong, "sstoken": block})


def test_attention_that_mixes_packed_samples_is_refused(config, tmp_path):
    settings = {**config, "sample_packing": True}
    if AXOLOTL >= (0, 18):
        compatibility.check(load(settings, tmp_path))
        settings.pop("attn_implementation")
    with pytest.raises(ValueError, match=r"attn_implementation: .*as if alone; set `attn_implementation: flash_att"):
        compatibility.check(load(settings, tmp_path))
    compatibility.check(load({**settings, "sample_packing": False}, tmp_path))


def test_a_model_that_can_see_is_trained_on_text_and_refused_with_images(config):
    text = {**config, "is_multimodal": True, "processor_config": config["base_model"], "processor_type": None}
    compatibility.check(text)
    compatibility.check({**text, "skip_prepare_dataset": True, "remove_unused_columns": False})
    for processor in ("AutoProcessor", "Llama4Processor", "VoxtralProcessor"):
        for packing in (False, True):
            with pytest.raises(ValueError, match=rf"processor_type: {processor} feeds images, audio or video"):
                compatibility.check({**text, "processor_type": processor, "sample_packing": packing})


@pytest.fixture
def adapter(tiny_llama, tmp_path):
    """A folder with an adapter, and the function that saves another one there."""

    def save(base=tiny_llama, **changes):
        model = AutoModelForCausalLM.from_pretrained(base)
        settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return str(tmp_path / "adapter")

    return save


def test_an_adapter_that_changed_its_base_weights_is_no_history(config, train, adapter):
    with pytest.raises(ValueError, match=r"sstoken\.history: .* init_lora_weights: pissa, over base weights that it"):
        train({**config, "sstoken": {"history": adapter(init_lora_weights="pissa")}})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"peft_init_lora_weights": "pissa"}, "peft_init_lora_weights: pissa"),
        ({"peft_init_lora_weights": "olora"}, "peft_init_lora_weights: olora"),
        ({"peft": {"loftq_config": {"loftq_bits": 4}}}, r"peft\.loftq_config: .*"),
        ({"reinit_weights": True}, "reinit_weights: true"),
    ],
    ids=str,
)
def test_an_adapter_over_weights_that_this_run_changes_is_no_history(config, adapter, tmp_path, changes, key):
    with pytest.raises(ValidationError, match=rf"{key} changes the base weights"):
        load({**config, **changes, "sstoken": {"history": adapter()}}, tmp_path)
    # A history with base weights of its own, and the run's own past, do not care.
    for block in ({"history": config["base_model"]}, {"history": "initial"}):
        compatibility.check({**config, **changes, "sstoken": block})


def test_an_adapter_over_weights_that_were_changed_in_a_way_to_come_is_no_history(config, train, adapter, monkeypatch):
    from axolotl.loaders import ModelLoader

    loaded = ModelLoader.load

    def load_and_change(self):
        model, adapted = loaded(self)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        return model, adapted

    monkeypatch.setattr(ModelLoader, "load", load_and_change)
    with pytest.raises(ValueError, match=r"sstoken\.history: .* and making the run's own adapter has changed them"):
        train({**config, "sstoken": {"history": adapter()}})


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_goes_on_from_one_that_changed_its_base_weights_cannot_share_them(
    config, train, tiny_llama, adapter, tmp_path, init
):
    """`lora_model_dir`: PEFT changes the base weights again when it loads such an adapter."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=init)
    get_peft_model(model, settings).save_pretrained(tmp_path / "start")
    history = adapter()
    with pytest.raises(ValueError, match=rf"sstoken\.history: .* has changed \(init_lora_weights: {init}\); make"):
        train({**config, "lora_model_dir": str(tmp_path / "start"), "sstoken": {"history": history}})


def test_an_adapter_over_repeated_layers_is_refused_before_anything_is_loaded(config, adapter, tmp_path):
    with pytest.raises(ValidationError, match=r"peft_layer_replication: .* changes the base weights"):
        load({**config, "peft_layer_replication": [[0, 3], [1, 3]], "sstoken": {"history": adapter()}}, tmp_path)


def test_an_adapter_that_repeats_layers_is_no_history(config, train, adapter):
    with pytest.raises(ValueError, match=r"sstoken\.history: .* was trained with layer_replication: "):
        train({**config, "sstoken": {"history": adapter(layer_replication=[[0, 3], [1, 3]])}})


def test_an_adapter_over_a_base_without_the_new_tokens_is_refused(config, train, adapter, tmp_path):
    """Full fine-tuning loads the base a second time, as it is on disk."""
    changes = {"adapter": None, "learning_rate": 0.001, "tokens": ["<|brand_new|>"]}
    with pytest.raises(ValueError, match=r"sstoken\.history: .* knows 49152 tokens and the tokenizer of this run has"):
        train({**config, **changes, "sstoken": {"history": adapter()}})


def test_an_adapter_for_other_layers_is_refused_before_training(config, train, adapter):
    with pytest.raises(ValueError, match=r"sstoken\.history: .*adapter cannot be loaded"):
        train({**config, "sstoken": {"history": adapter(target_modules=["no_such_layer"])}})


def test_a_history_with_another_tokenizer_is_refused_before_training(config, train, tiny_llama, tmp_path):
    write_with_other_tokens(tiny_llama, tmp_path / "other")
    with pytest.raises(ValueError, match=r"sstoken\.history: .*other has another tokenizer than this run"):
        train({**config, "sstoken": {"history": str(tmp_path / "other")}})


def test_a_history_with_a_smaller_vocabulary_is_refused_before_training(config, train, tiny_llama, tmp_path):
    settings = AutoConfig.from_pretrained(tiny_llama)
    settings.vocab_size = 1000
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"sstoken\.history: .*small knows 1000 tokens and the tokenizer .* 49152"):
        train({**config, "sstoken": {"history": str(tmp_path / "small")}})


def test_what_nobody_has_run_is_warned_of():
    assert compatibility.untested({"optimizer": "scao", "fp8": True, "qat": None}) == ["fp8", "optimizer: scao"]
    assert compatibility.untested({"optimizer": "adamw_torch", "dp_shard_size": None, "fsdp_config": {}}) == []


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn3"])
def test_a_key_that_is_on_by_default_is_warned_of_where_it_acts(attention):
    key = "fa_varlen_kwargs_in_collator"
    acts = {key: True, "sample_packing": True, "attn_implementation": attention}
    assert compatibility.untested(acts) == [key]
    for changes in (
        {key: False}, {"sample_packing": False}, {"sample_packing": None}, {"attn_implementation": "sdpa"},
        {"attn_implementation": "flex_attention"}, {"attn_implementation": None},
    ):  # fmt: skip
        assert compatibility.untested({**acts, **changes}) == []


def test_a_plain_run_warns_of_nothing(config, tmp_path):
    for changes in ({}, {"sample_packing": True}, {"adapter": None}):
        assert compatibility.untested(load({**config, **changes}, tmp_path)) == []


def test_every_refusal_names_a_reason_and_a_way_out():
    assert len({(refusal.key, refusal.reason) for refusal in refusals.REFUSALS}) == len(refusals.REFUSALS)
    for refusal in refusals.REFUSALS:
        assert refusal.way_out
        with pytest.raises(ValueError, match=re.escape(f"{refusal.key} {refusal.reason}; {refusal.way_out}.")):
            refusal.refuse()


def test_full_fine_tuning_without_rel_validates(config, tmp_path):
    cfg = load({**config, "adapter": None, "sstoken": {"selector": "attention"}}, tmp_path)
    assert cfg.sstoken.selector == "attention"


def test_defaults_are_those_of_the_design(config, tmp_path):
    settings = SSTokenConfig.from_block(load(config, tmp_path).sstoken)
    assert settings == SSTokenConfig()
    assert (settings.ratio, settings.gamma, settings.warmup_ratio, settings.keep_eos) == (0.6, 0.5, 0.2, True)


def test_command_line_overrides_reach_the_block(config, tmp_path):
    block = {**config, "sstoken": {"gamma": 0.3, "ratio": 0.9}}
    nested = load(block, tmp_path, sstoken__ratio="0.4", sstoken__keep_eos="false")
    dotted = load(block, tmp_path, **{"sstoken.ratio": 0.4, "sstoken.keep_eos": False})
    for cfg in (nested, dotted):
        assert (cfg.sstoken.ratio, cfg.sstoken.gamma, cfg.sstoken.keep_eos) == (0.4, 0.3, False)
    assert load(config, tmp_path, **{"sstoken.ratio": 0.4}).sstoken.ratio == 0.4
    with pytest.raises(ValueError, match=r"sstoken\.rtio .*sstoken\.ratio"):
        load(config, tmp_path, **{"sstoken.rtio": 0.4})
    with pytest.raises(ValueError, match=r"sstoken: 'on' is not a block .*`sstoken\.ratio`"):
        load({**config, "sstoken": "on"}, tmp_path, **{"sstoken.ratio": 0.4})


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("there", "option", "value"),
    [(False, "/data/cache", "/data/cache"), ("losses", "false", False), (None, "auto", "auto"), (None, "[a", "[a")],
)
def test_an_option_of_a_command_is_read_as_it_is_written_whatever_the_yaml_has(
    there, option, value, strict, config, tmp_path
):
    block = {} if there is None else {"history_cache": there}
    file = write({**config, "strict": strict, "sstoken": block}, tmp_path)
    context = SimpleNamespace(args=[f"--sstoken.history_cache={option}"], command=cli.score_command)
    _, settings = cli._load(str(file), cli._overrides(context))
    assert settings.history_cache == value


def test_a_model_that_one_process_spreads_over_gpus_is_refused():
    def model(*devices):
        return SimpleNamespace(parameters=lambda: [SimpleNamespace(device=torch.device(name)) for name in devices])

    refuse_spread(model("cuda:1", "cuda:1", "cpu"))
    with pytest.raises(
        ValueError, match=r"device_map: the model is spread over cuda:0 and cuda:1, .* accelerate launch"
    ):
        refuse_spread(model("cuda:0", "cuda:1", "cpu"))


@pytest.mark.parametrize("value", ["two", [2]], ids=str)
def test_a_wrong_type_of_a_key_of_axolotl_is_left_to_axolotl(config, tmp_path, value):
    with pytest.raises(ValidationError, match="context_parallel_size"):
        load({**config, "context_parallel_size": value}, tmp_path)


def test_another_plugin_with_a_trainer_is_refused_before_data_is_loaded(config, train):
    with pytest.raises(ValueError, match=r"plugins: .*KDPlugin brings its own trainer"):
        train({**config, "plugins": ["axolotl.integrations.kd.KDPlugin", "sstoken"], "kd_trainer": True})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sstoken": {"attention_layer": 3}}, "sstoken.attention_layer: 3 is out of range.*3 such layers"),
        ({"sstoken": {"attention_layer": -4}}, "sstoken.attention_layer: -4 is out of range"),
    ],
    ids=str,
)
def test_what_only_the_loaded_model_shows_is_refused_before_training(config, train, changes, words):
    with pytest.raises(ValueError, match=words):
        train({**config, **changes})


def test_settings_without_effect_are_named():
    settings = SSTokenConfig.from_block({"selector": "rel", "gamma": 0.9, "seed": 3, "warmup_ratio": 0.1})
    sentences = settings.keys_without_effect()
    assert [sentence.split(":")[0] for sentence in sentences] == ["sstoken.gamma", "sstoken.seed"]
    settings = SSTokenConfig.from_block({"selector": "random", "history": "ema", "history_device": "cpu"})
    sentences = settings.keys_without_effect()
    assert [sentence.split(":")[0] for sentence in sentences] == ["sstoken.history", "sstoken.history_device"]
    sentences = SSTokenConfig.from_block({"selector": "all", "keep_eos": False}).keys_without_effect()
    assert [sentence.split(":")[0] for sentence in sentences] == ["sstoken.keep_eos"]
    settings = SSTokenConfig.from_block({"report": False, "report_samples": 5, "report_seconds": 60})
    assert settings.keys_without_effect() == [
        "sstoken.report_samples: 5 has no effect with report: false.",
        "sstoken.report_seconds: 60.0 has no effect with report: false.",
    ]
    assert "every response token" in SSTokenConfig.from_block({"ratio": 1}).keys_without_effect()[0]
    assert "selector: sstoken never ranks" in SSTokenConfig.from_block({"warmup_ratio": 1}).keys_without_effect()[0]


def test_variables_and_home_are_replaced_in_paths(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("$SOMEWHERE/cache", "${SOMEWHERE}/cache", "~/cache"):
        assert compatibility.expand(path) == tmp_path / "cache"
        compatibility.check({**config, "sstoken": {"history_cache": path}})
    assert not (tmp_path / "$SOMEWHERE").exists()


def test_a_name_in_a_refusal_stays_on_its_line():
    with pytest.raises(ValueError, match="no folder") as told:
        compatibility.check({"sstoken": {"history": "/no/where\n[INFO] ssToken is active: FORGED\x1b[2J"}})
    assert len(str(told.value).splitlines()) == 1
    assert "\x1b" not in str(told.value)
