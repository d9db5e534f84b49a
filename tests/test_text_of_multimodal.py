"""Training on text alone from checkpoints that can also see: Axolotl loads them whole, image tower included."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from material import STEADY
from transformers import AutoModelForImageTextToText

from sstoken_plugin.engine.losses import token_nll
from sstoken_plugin.training.setup import describe

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
# Class of the model, its language model, its image tower, and the layer whose attention shall be measured: the last
# that sees the whole sample.
SEEING: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        VISION,
        1,
    ),
    "qwen3_5": (
        "Qwen3_5ForConditionalGeneration",
        {
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
        },
        1,
    ),
    "llama4": (
        "Llama4ForConditionalGeneration",
        {
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 128,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 64,
            "no_rope_layers": [1, 0, 1],
            "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        },
        {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        1,
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral", "sliding_window": None},
        {**VISION, "model_type": "pixtral", "head_dim": 16},
        2,
    ),
}


@pytest.fixture(params=SEEING)
def kind(request: pytest.FixtureRequest) -> str:
    if not hasattr(transformers, SEEING[request.param][0]):
        pytest.skip("this release of transformers does not have it")
    return request.param


@pytest.fixture
def run(kind: str, config: dict[str, Any], tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    """The small run on a tiny random model of the kind, as a YAML for text alone has it: without `processor_type`."""
    folder = write_model(kind, tmp_path / kind, tokenizer)
    return {
        **config,
        **STEADY,
        "base_model": str(folder),
        "lora_target_linear": False,
        "lora_target_modules": r".*language_model.*\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
    }


def write_model(kind: str, folder: Path, tokenizer: Any) -> Path:
    class_name, text, vision, _ = SEEING[kind]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model_class(
        model_class.config_class(
            text_config={**TEXT, "vocab_size": len(tokenizer), **text}, vision_config=vision, tie_word_embeddings=False
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Axolotl loads the processor of any model that can see, and most want torchvision. None is called on text.
    processor = {"processor_class": "CLIPProcessor", "image_processor_type": "CLIPImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_all_tokens_train_as_without_the_plugin(kind: str, run: dict[str, Any], train: Any) -> None:
    plain = train({**run, "plugins": []})
    assert type(plain.model.get_base_model()).__name__ == SEEING[kind][0]
    for settings in ({"selector": "all"}, {"ratio": 1.0}):
        selected = train({**run, "sstoken": settings})
        assert selected.losses == pytest.approx(plain.losses, abs=1e-5)
        for name, weight in plain.weights.items():
            torch.testing.assert_close(selected.weights[name], weight, atol=1e-5, rtol=1e-5)


def test_selection_compares_with_the_checkpoint_and_measures_the_language_model(
    kind: str, run: dict[str, Any], train: Any, steps: list[Any], tokenizer: Any
) -> None:
    # In a warm-up nothing is compared with the history.
    selected = train({**run, "sstoken": {"warmup_ratio": 0.0}})
    assert 0.5 < selected.lines[-1]["sstoken/selected_ratio"] < 0.9

    base = AutoModelForImageTextToText.from_pretrained(run["base_model"], attn_implementation="sdpa").eval()
    for step, batch in (steps[0], steps[-1]):
        with torch.no_grad():
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            logits = base(**inputs, use_cache=False).logits
        own = token_nll(logits.flatten(0, 1)[step.layout.logit_position], step.layout.target)
        torch.testing.assert_close(step.scores.history, own, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(step.scores.rel, own - step.scores.current, atol=1e-4, rtol=1e-4)
    assert steps[0][0].scores.rel.abs().max() < 1e-4
    assert steps[-1][0].scores.rel.abs().max() > 1e-2

    active = describe(selected.trainer.sstoken.selection, tokenizer)
    assert re.search(
        rf"attention layer \d of \d \(\S*language_model\S*\.layers\.{SEEING[kind][3]}\.self_attn\)", active
    )


def test_the_history_can_be_another_checkpoint_that_can_also_see(
    kind: str, run: dict[str, Any], train: Any, steps: list[Any], tokenizer: Any, tmp_path: Path
) -> None:
    other = write_model(kind, tmp_path / "other", tokenizer)
    model = AutoModelForImageTextToText.from_pretrained(other, attn_implementation="sdpa").eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    model.save_pretrained(other)
    train({**run, "max_steps": 1, "sstoken": {"history": str(other), "warmup_ratio": 0.0}})
    step, batch = steps[0]
    with torch.no_grad():
        logits = model(**{key: batch[key] for key in ("input_ids", "attention_mask")}, use_cache=False).logits
    expected = token_nll(logits.flatten(0, 1)[step.layout.logit_position], step.layout.target)
    torch.testing.assert_close(step.scores.history, expected, atol=1e-4, rtol=1e-4)
    assert (step.scores.history - step.scores.current).abs().max() > 1e-2
