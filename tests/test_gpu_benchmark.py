"""The benchmark for GPUs on a CPU, where Axolotl and PEFT cannot be imported; and the cost model's figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cost_model  # noqa: E402
from cost_model import ARCHITECTURES, DEVICES, Architecture, Setting, flops_ratio, peak_bytes, time_ratio  # noqa: E402

# Run by Python as it starts.
WITHOUT = """
import importlib.machinery, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in {"axolotl", "peft", "bitsandbytes"}:
            return None
        return super().find_spec(fullname, path, target)

sys.meta_path[:] = [Without if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def without_axolotl(tmp_path):
    """An environment in which Python finds neither Axolotl nor PEFT nor bitsandbytes."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for name in ("axolotl", "peft", "bitsandbytes"):
        found = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=environment, capture_output=True, text=True
        )
        assert "ModuleNotFoundError" in found.stderr
    return environment


def test_every_case_runs_on_a_cpu_without_axolotl(without_axolotl, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--tiny", "--pairs", "1"]
    ran = subprocess.run(
        [*command, "--out", tmp_path / "gpu"], env=without_axolotl, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) == 31
    skipped = {name: row["skipped"] for name, row in rows.items() if "skipped" in row}
    assert len(skipped) == 6
    for name, reason in skipped.items():
        assert ("bitsandbytes" if "qlora" in name else "flash-attn") in reason, name
    for name, row in rows.items():
        if name in skipped:
            continue
        figures = [row["probe"], row["bookkeeping"]] if name.endswith("parts") else [row["time_ratio"]]
        assert all(figure["median"] > 0 for figure in figures), name


def test_four_bits_are_measured_where_bitsandbytes_is_there(tmp_path):
    pytest.importorskip("bitsandbytes")
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--tiny", "--pairs", "1"]
    subprocess.run([*command, "--only", "qlora, 1", "--out", tmp_path / "gpu"], check=True, timeout=600)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) == 2
    assert all(row["time_ratio"]["median"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.1345),
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("qwen2.5-7b", 7.616),
        ("llama-3.1-8b", 8.030),
        ("qwen2.5-14b", 14.770),
    ],
)
def test_shapes_have_the_parameters_of_their_models(name, billions):
    assert ARCHITECTURES[name].parameters == pytest.approx(billions * 1e9, rel=0.001)


def test_what_fits_on_a_card_is_the_most_that_does():
    setting = Setting(ARCHITECTURES["llama-3.2-3b"], "qlora")
    rows = cost_model.rows_that_fit(setting, "plain", 10)
    assert peak_bytes(replace(setting, batch=rows), "plain") <= 10 * cost_model.GIB
    assert peak_bytes(replace(setting, batch=rows + 1), "plain") > 10 * cost_model.GIB
    assert cost_model.rows_that_fit(setting, "plain", 1) == 0


def test_the_recipes_have_the_table_that_is_computed():
    assert f"\n{cost_model.cards_table([12, 24])}\n" in (ROOT / "docs" / "recipes.md").read_text()


def test_plain_flops_are_those_of_the_textbook():
    shape = ARCHITECTURES["llama-3.2-3b"]
    # Six FLOPs a weight and token, attention aside, where everything trains and nothing is computed again.
    setting = Setting(shape, "full", length=2048, checkpointing=False)
    attention = 3.5 * shape.layers * cost_model.attention(setting)
    weights = shape.linear_weights + shape.head_weights
    assert cost_model.total(setting, "plain").flops == pytest.approx(6 * 2048 * weights + attention)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("name", ["llama-3.2-3b", "qwen2.5-7b"])
def test_a_warm_step_costs_less_than_a_plain_one_and_a_history_more(name, method):
    setting = Setting(ARCHITECTURES[name], method)
    assert flops_ratio(setting, "warm") < 1 < flops_ratio(setting, "history") < 4 / 3
    for device in DEVICES.values():
        assert time_ratio(setting, "warm", device) < 1 < time_ratio(setting, "history", device) < 4 / 3
    longer_prompt = Setting(ARCHITECTURES[name], method, prompt_share=0.8)
    assert flops_ratio(longer_prompt, "warm") < flops_ratio(setting, "warm")


@pytest.mark.parametrize("name", ["llama-3.2-3b", "qwen2.5-7b"])
def test_plain_training_peaks_higher(name):
    for method in ("lora", "qlora"):
        setting = Setting(ARCHITECTURES[name], method, length=8192)
        assert peak_bytes(setting, "plain") > 1.3 * peak_bytes(setting, "warm")
        assert peak_bytes(setting, "history") == peak_bytes(setting, "warm")
    full = Setting(ARCHITECTURES[name], "full", length=8192)
    copy = peak_bytes(full, "history") - peak_bytes(full, "warm")
    assert copy == 2 * ARCHITECTURES[name].parameters


def saved_bytes(layers):
    """Measure what a forward pass of 64 tokens keeps for the backward pass, weights aside."""
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=96, num_attention_heads=6, num_key_value_heads=2, intermediate_size=256,
        head_dim=16, vocab_size=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=torch.arange(64)[None], use_cache=False).logits
    assert logits.requires_grad
    return sum(found.values())


def test_activations_of_a_block_are_what_autograd_keeps():
    setting = Setting(Architecture(1, 96, 6, 2, 16, 256, 64, tied=False), "full", length=64)
    assert saved_bytes(3) - saved_bytes(2) == pytest.approx(cost_model.block_activations(setting), rel=0.03)
