"""Ways of training that need a GPU: every step against the method written once more (tests/reference.py).

`pytest -n 8 --dist worksteal tests/test_gpu.py` on a machine with a GPU; elsewhere all of it is skipped. A way that
Axolotl itself does not start there, without the plugin either, is skipped with Axolotl's words.
"""

import copy
import shutil
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
import torch
from material import STEADY
from peft import get_peft_model
from reference import assert_every_step_by_the_method, past_weights
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is false"),
    pytest.mark.usefixtures("process_as_before"),
]

BF16 = {"bf16": True}
FULL = {"adapter": None, "learning_rate": 0.005}
QLORA = {"adapter": "qlora", "load_in_4bit": True}
PADDED = {"pad_to_sequence_len": True}
PACKED = {"sample_packing": True}
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
# Rows of one length: each other one is compiled once more.
COMPILED = {"torch_compile": True, **PADDED, "sequence_len": 128}
FUSED = {"lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True}
LIGER = {
    "plugins": ["sstoken", "axolotl.integrations.liger.LigerPlugin"],
    "liger_rope": True, "liger_rms_norm": True, "liger_glu_activation": True, "liger_fused_linear_cross_entropy": True,
}  # fmt: skip
CUT = {
    "plugins": ["sstoken", "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"], "cut_cross_entropy": True,
}  # fmt: skip


def attention(kernel, *ways, **changes):
    """Ways of one kind of attention, by the names of its rows."""
    rows = {"padded": PADDED, "packed": PACKED, "one sample": {"micro_batch_size": 1}}
    return {
        f"{kernel}, {way}": {
            "attn_implementation": kernel, **rows[way.removesuffix(", bfloat16")],
            **(BF16 if way.endswith("bfloat16") else {}), **changes,
        }
        for way in ways
    }  # fmt: skip


BOTH, BOTH_BF16 = ("padded", "packed"), ("padded, bfloat16", "packed, bfloat16")
# The compiled ones, the slowest, stand apart: workers take ways that are neighbours.
GROUPS = [
    {"compiled": COMPILED},
    {
        "lora": {},
        "lora, bfloat16": BF16,
        "full": FULL,
        "full, bfloat16": {**FULL, **BF16},
        "deterministic": {"full_determinism": True},
        "deterministic, packed": {"full_determinism": True, **PACKED},
    },
    attention("eager", *BOTH),
    attention("sdpa", *BOTH, "padded, bfloat16"),
    {"compiled, checkpointing": {**COMPILED, **CHECKPOINTING}},
    {
        "sdpa, packed, bfloat16, by a mask": {**PACKED, **BF16, "sdpa_varlen": False},
        "sdpa_varlen": {**PACKED, **BF16, "sdpa_varlen": True},
        "sdpa_varlen, full": {**PACKED, **BF16, **FULL, "sdpa_varlen": True},
    },
    attention("flash_attention_2", *BOTH_BF16),
    attention("flash_attention_torch", *BOTH_BF16),
    attention("flex_attention", *BOTH),
    {"compiled by layer": {**COMPILED, "torch_compile_regional": True}},
    attention("flex_attention", "packed, bfloat16"),
    attention("xformers", "one sample", "packed", *BOTH_BF16, "one sample, bfloat16"),
    attention("sage", *BOTH_BF16),
    {
        f"activations offloaded: {where}{name}": {**CHECKPOINTING, **changes, "activation_offloading": where}
        for where in (True, "legacy", "disk", "hidden_states")
        for name, changes in (("", {}), (", full", FULL))
    },
    {
        "hidden states offloaded, reentrant": {
            "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True},
            "activation_offloading": "hidden_states",
        },
        "layers offloaded": {"layer_offloading": True},
        "tiled MLP": {"tiled_mlp": True, "tiled_mlp_num_shards": 4},
    },
    {
        "fused adapters": FUSED,
        "fused adapters, bfloat16": {**FUSED, **BF16},
        "fused adapters, packed, checkpointing": {**FUSED, **PACKED, **CHECKPOINTING},
        "fused adapters over 4 bits": {**FUSED, **QLORA, **BF16},
        "QLoRA": QLORA,
        "QLoRA, bfloat16": {**QLORA, **BF16},
        "QLoRA, packed, checkpointing, bfloat16": {**QLORA, **BF16, **PACKED, **CHECKPOINTING},
        "LoRA over 8 bits": {"load_in_8bit": True},
        "LoRA over 8 bits, bfloat16": {"load_in_8bit": True, **BF16},
    },
    {
        "liger": LIGER,
        "liger, bfloat16, packed": {**LIGER, **BF16, **PACKED},
        "liger, full": {**LIGER, **FULL},
        "liger, fused adapters": {**LIGER, **FUSED},
        "cut cross entropy": {**CUT, **BF16},
        "chunked cross entropy": {"chunked_cross_entropy": True},
    },
    {
        f"{name}{', full' if changes else ''}": {"optimizer": name, **changes}
        for name, changes in (
            ("adamw_bnb_8bit", {}), ("paged_adamw_8bit", FULL), ("adamw_torch_fused", {}), ("muon", {}), ("muon", FULL),
        )
    },
    {
        "history ema": {"sstoken": {"history": "ema", "history_ema_decay": 0.7}},
        "history ema, on the CPU": {
            "sstoken": {"history": "ema", "history_ema_decay": 0.7, "history_device": "cpu"}, **FULL,
        },
        "history snapshot": {"sstoken": {"history": "snapshot", "history_update_steps": 2}},
        "history snapshot, bfloat16, packed": {
            "sstoken": {"history": "snapshot", "history_update_steps": 2}, **BF16, **PACKED, **FULL,
            # Else the last step of an epoch has fewer micro-batches.
            "gradient_accumulation_steps": 1,
        },
        "history on the CPU": {"sstoken": {"history_device": "cpu"}, **FULL},
    },
]  # fmt: skip
WAYS = dict(chain.from_iterable(group.items() for group in GROUPS))


def tolerance(config):
    """How far rounding may move a loss, and attention."""
    if config["attn_implementation"] == "sage":
        return 0.5, 0.05
    if config["bf16"]:
        return 0.05, 0.01
    # 8-bit layers round activations, and outliers of a row of the batch, together, to float16.
    return (5e-2, 1e-2) if config.get("load_in_8bit") else (3e-4, 1e-4)


def run_or_skip(config, train, undo):
    """Run a way of training; skip the test where Axolotl does not get through it without the plugin either."""
    if config["attn_implementation"] == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    try:
        return train(config)
    except Exception as error:
        # After that nothing runs in this process, with the plugin or without.
        if "CUDA error" in str(error):
            raise
        undo()
        plugins = [name for name in config["plugins"] if name != "sstoken"]
        try:
            train({**config, "plugins": plugins, "sstoken": None})
        except type(error) as own:
            words = " ".join(str(own).split())
            pytest.skip(f"Axolotl without the plugin: {type(own).__name__}: {words[:300]}")
        raise


def plain_model(run, config):
    """A model with the first weights of a run that computes in float32, with no kernel or patch that the run had.

    Quantised weights are the run's own: it is then a copy of the run's model, without the kernels of its layers.
    """
    if config.get("load_in_4bit") or config.get("load_in_8bit"):
        model = copy.deepcopy(run.model)
        for module in model.modules():
            if isinstance(module, LlamaAttention | LlamaMLP):
                vars(module).pop("forward", None)
        model.set_attn_implementation("eager")
        return model
    loaded = {"attn_implementation": "eager", "dtype": run.cfg.torch_dtype}
    model = AutoModelForCausalLM.from_pretrained(config["base_model"], **loaded).float()
    if config["adapter"]:
        model = get_peft_model(model, copy.deepcopy(run.model.peft_config["default"]))
    return model.to(run.trainer.args.device).eval()


@pytest.mark.parametrize("way", WAYS)
def test_every_step_selects_by_the_method(config, train, steps, weights, process_as_before, way):
    # Kept losses are rounded.
    block = {"warmup_ratio": 0.0, "report": False, "history_cache": False, **WAYS[way].get("sstoken", {})}
    config = {**config, "max_steps": 3, **WAYS[way], "sstoken": block}
    run = run_or_skip(config, train, process_as_before)
    assert all(step.scores.current.is_cuda for step, _ in steps)
    assert run.model.config._attn_implementation == config["attn_implementation"]
    process_as_before()
    # Offloading wraps the layers of a model that trains in full, which shows in the names.
    weights = [{name.replace("_checkpoint_wrapped_module.", ""): p for name, p in now.items()} for now in weights]
    past = list(past_weights(block.get("history", "initial"), weights, config["gradient_accumulation_steps"]))
    assert_every_step_by_the_method(run, steps, weights, plain_model(run, config), *tolerance(config), past)


@pytest.mark.parametrize("changes", [{}, PACKED, QLORA, FULL], ids=["padded", "packed", "qlora", "full"])
def test_ratio_one_trains_as_without_the_plugin(config, train, changes):
    selected = train({**config, **STEADY, **changes, "sstoken": {"ratio": 1.0}})
    plain = train({**config, **STEADY, **changes, "plugins": [], "sstoken": None})
    assert selected.losses == pytest.approx(plain.losses, abs=2e-5)
    for name, weight in plain.weights.items():
        torch.testing.assert_close(selected.weights[name], weight, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "block"),
    [
        ({}, {}),
        ({"lora_dropout": 0.2}, {"history": "ema", "history_ema_decay": 0.7}),
        (FULL, {"history": "snapshot", "history_update_steps": 2}),
        ({}, {"selector": "random"}),
    ],
    ids=["lora", "ema, dropout", "full, snapshot", "random"],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(config, train, steps, tmp_path, changes, block):
    """Bit for bit, where the kernels are the same from run to run; the warm-up ends at step 3."""
    settings = {
        **config, **changes, "full_determinism": True, "max_steps": 6, "save_strategy": "steps", "save_steps": 4,
        "sstoken": {"warmup_ratio": 0.5, "report": False, **block},
    }  # fmt: skip
    whole = train(settings)
    kept = [step.kept.tolist() for step, _ in steps]
    steps.clear()
    shutil.copytree(Path(settings["output_dir"]) / "checkpoint-4", tmp_path / "from")
    places = {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": str(tmp_path / "from")}
    resumed = train({**settings, **places})
    assert [step.kept.tolist() for step, _ in steps] == kept[8:]
    assert resumed.losses == whole.losses
    assert resumed.weights.keys() == whole.weights.keys()
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name
    assert not resumed.trainer.sstoken.warnings


@pytest.mark.parametrize("changes", [{}, PACKED, FULL], ids=["lora", "packed", "full"])
def test_a_warm_cache_computes_nothing_and_selects_the_same(config, train, steps, forwards, tmp_path, changes):
    block = {"warmup_ratio": 0.0, "report": False, "history_cache": str(tmp_path / "cache")}
    # An epoch has 6 steps; the same kernels each time, else the weights of the two runs differ.
    settings = {**config, **changes, "max_steps": 6, "full_determinism": True, "sstoken": block}
    cold = train(settings)
    kept = [step.kept.tolist() for step, _ in steps]
    assert forwards
    steps.clear()
    forwards.clear()
    warm = train(settings)
    assert not forwards
    assert [line["sstoken/history_cache_hits"] for line in warm.lines] == [1] * len(warm.lines)
    assert [step.kept.tolist() for step, _ in steps] == kept
    assert warm.losses == cold.losses
