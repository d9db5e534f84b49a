"""Axolotl's ways of training: every step scored against the method written once more (tests/reference.py)."""

import copy
from contextlib import nullcontext
from itertools import chain

import pytest
import torch
from conftest import AXOLOTL
from reference import assert_every_step_by_the_method, assert_kept_by_the_rule, scored_samples, signals
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

pytestmark = pytest.mark.usefixtures("process_as_before")

FULL = {"adapter": None, "learning_rate": 0.005}
WEIGHTS = {
    "DoRA, rsLoRA": {"peft_use_dora": True, "peft_use_rslora": True},
    "PiSSA": {"peft_init_lora_weights": "pissa"},
    "trainable embeddings": {
        "lora_modules_to_save": ["embed_tokens", "lm_head"],
        "lora_target_linear": False,
        "lora_target_modules": ["q_proj", "up_proj"],
    },
    "a new token": {"tokens": ["<new>"], "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    "trainable tokens": {"peft_trainable_token_indices": {"embed_tokens": [1, 2, 400]}},
    "QLoRA": {"adapter": "qlora", "load_in_4bit": True},
    "LoRA over 8 bits": {"load_in_8bit": True},
    "full": FULL,
    "some layers": {**FULL, "unfrozen_parameters": ["model.layers.2.*"]},
}
ROWS = {
    f"{kernel}, {name}": {"attn_implementation": kernel, **changes}
    for kernel in ("eager", "sdpa")
    for name, changes in {
        "padded": {"pad_to_sequence_len": True},
        "packed": {"sample_packing": True, "pad_to_sequence_len": False},
        "packed and padded": {"sample_packing": True, "pad_to_sequence_len": True},
        "packed in rows": {"sample_packing": True, "multipack_real_batches": True},
    }.items()
}
ENGINE = {
    "bfloat16": {"bf16": True, "plugins": ["sstoken", "cpu_plugin.OnCpu"]},
    "checkpointing, reentrant": {"gradient_checkpointing": True},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    # Another backend than this one compiles the same graphs, minutes long.
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "compiled, checkpointing": {
        "torch_compile": True,
        "torch_compile_backend": "eager",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
}
# Those of the MLP and of 4-bit weights need a GPU.
KERNELS = {
    "fused adapters": {"lora_qkv_kernel": True, "lora_o_kernel": True},
    "fused embeddings": {
        "lora_embedding_kernel": True, "lora_target_linear": False, "lora_target_modules": ["embed_tokens", "q_proj"],
    },
}  # fmt: skip
OPTIMIZERS = {
    "LoRA+, clipped": {"loraplus_lr_ratio": 16, "max_grad_norm": 0.05},
    "Adafactor": {"optimizer": "adafactor"},
    "schedule free": {"optimizer": "schedule_free_adamw"},
    "Muon": {"optimizer": "muon"},
    "ADOPT": {"optimizer": "adopt_adamw"},
}
ORDER = {
    "curriculum": {"curriculum_sampling": True},
    "curriculum, packed": {"curriculum_sampling": True, "sample_packing": True, "sample_packing_sequentially": True},
    "by length, worker processes": {"group_by_length": True, "dataloader_num_workers": 1},
}
# Keys that older releases lack.
SINCE_20 = {
    "adapter gradients in float32": {"lora_fp32_gradients": True},
    "activations of some modules saved": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "selective_checkpointing": {"save_modules": ["down_proj", "o_proj"]},
    },
    "QLoRA by torchao": {"adapter": "qlora", "load_in_4bit": True, "nf4_backend": "torchao"},
}
SINCE_21 = {
    "Muon, states in 8 bits": {"optimizer": "muon_8bit"},
    "balanced labels": {"balance_labels": True, "label_balance_window_optim_steps": 2},
    "balanced labels, packed": {"balance_labels": True, "sample_packing": True},
    "compiled by layer": {"torch_compile": True, "torch_compile_backend": "eager", "torch_compile_regional": True},
    "LoRA+, embeddings at a rate of their own": {
        "loraplus_lr_ratio": 16, "embedding_lr": 0.001,
        "lora_target_linear": False, "lora_target_modules": ["q_proj", "up_proj", "embed_tokens"],
    },
    "losses that are not finite are logged": {"logging_nan_inf_filter": False},
    "deterministic": {"full_determinism": True},
    "tied weights stay tied": {
        "peft_ensure_weight_tying": True, "lora_modules_to_save": ["embed_tokens"],
    },
    "evaluation at the start": {"eval_on_start": True, "val_set_size": 0.25, "eval_steps": 2},
    "profiled": {"sync_profiler_steps": 1},
}  # fmt: skip
GROUPS = [WEIGHTS, ROWS, ENGINE, KERNELS, OPTIMIZERS, ORDER]
GROUPS += [SINCE_20] if AXOLOTL >= (0, 20) else []
GROUPS += [SINCE_21] if AXOLOTL >= (0, 21) else []
WAYS = dict(chain.from_iterable(group.items() for group in GROUPS))

# How far rounding may move a loss: 8-bit layers round activations, and outliers of a row of the batch, together.
TOLERANCE = {"LoRA over 8 bits": 1e-2, "bfloat16": 0.15}


@pytest.mark.parametrize("way", WAYS)
def test_every_step_selects_by_the_method(config, train, steps, weights, way):
    # Kept losses are rounded.
    block = {"warmup_ratio": 0.0, "report": False, "history_cache": False}
    run = train({**config, "max_steps": 3, **WAYS[way], "sstoken": block})
    model = copy.deepcopy(run.model)
    model.set_attn_implementation("eager")
    assert_every_step_by_the_method(run, steps, weights, model, TOLERANCE.get(way, 1e-4))


@pytest.mark.skipif(AXOLOTL < (0, 20), reason="data sets have no weight in this release")
def test_part_of_a_data_set_is_ordinary_data(config, train, steps):
    whole = train({**config, "max_steps": 1}).data
    config["datasets"][0]["weight"] = 0.5
    config["dataset_prepared_path"] += "-half"
    steps.clear()
    run = train({**config, "max_steps": 3, "sstoken": {"warmup_ratio": 0.0}})
    assert len(run.data) == len(whole) // 2
    for number, _, _, _, rows in scored_samples(steps):
        assert_kept_by_the_rule(steps[number][0], rows, run.trainer.sstoken.selection.config)


def test_noise_on_embeddings_reaches_the_training_pass_alone(config, train, steps):
    run = train({**config, "neftune_noise_alpha": 5, "sstoken": {"warmup_ratio": 0.0, "report": False}})
    run.model.set_attn_implementation("eager")
    noisy = 0.0
    with run.model.disable_adapter():
        for number, ids, response, _, rows in scored_samples(steps):
            step = steps[number][0]
            expected = signals(run.model, ids)[0][torch.tensor(response) - 1]
            assert_close(step.scores.history[rows], expected, atol=1e-4, rtol=0)
            assert_kept_by_the_rule(step, rows, run.trainer.sstoken.selection.config)
            if number == 0:
                noisy = max(noisy, (step.scores.current[rows] - expected).abs().max().item())
    assert noisy > 0.01


def test_activations_may_be_kept_elsewhere(config, train, steps):
    """What `activation_offloading` does on a GPU: the tensors saved for the backward pass move away and back."""
    run = train({**config, "max_steps": 1})
    step, batch = steps[-1]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    found = []
    for where in (nullcontext(), saved_tensors_hooks(lambda saved: saved.clone(), lambda kept: kept.clone())):
        run.model.zero_grad()
        again = run.trainer.sstoken.selection.begin(run.model, batch, step.phase)
        with where:
            with again.observed():
                outputs = run.model(**inputs)
            again.loss(outputs).backward()
        found.append((again.kept, [p.grad.clone() for p in run.model.parameters() if p.grad is not None]))
    assert torch.equal(found[0][0], found[1][0])
    assert_close(found[1][1], found[0][1])
