"""Tiny random models of the families that people fine-tune, by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteConfig,
    JambaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
)

VOCABULARY = 64
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Far more than at a usual start, so that attention is far from uniform.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 4
SLIDING = ["sliding_attention", "sliding_attention"]
MIXED = ["full_attention", "sliding_attention"]
THREE = {**SIZE, "num_hidden_layers": 3}
GEMMA = {**SIZE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}

LLAMA = LlamaConfig(**SIZE)
FAMILIES = {
    "llama": LLAMA,
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
    "mistral, sliding": MistralConfig(**SIZE, head_dim=8, sliding_window=WINDOW),
    "gemma2": Gemma2Config(**GEMMA, layer_types=MIXED, attn_logit_softcapping=None, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**GEMMA, layer_types=MIXED),
    "gemma3, sliding": Gemma3TextConfig(**GEMMA, layer_types=SLIDING),
    "phi": PhiConfig(**SIZE),
    "phi3": Phi3Config(**SIZE),
    "smollm3": SmolLM3Config(**SIZE),
    "olmo": OlmoConfig(**SIZE),
    "olmo2": Olmo2Config(**SIZE),
    "granite": GraniteConfig(**SIZE, logits_scaling=4.0, attention_multiplier=0.5),
    "cohere": CohereConfig(**SIZE, logit_scale=0.1),
    "cohere2": Cohere2Config(**SIZE, sliding_window=WINDOW, layer_types=MIXED),
    "qwen3-moe": Qwen3MoeConfig(**SIZE, head_dim=8, **EXPERTS),
    "mixtral": MixtralConfig(**SIZE, num_local_experts=2, num_experts_per_tok=1),
}
# In these, only some kinds of attention function exist.
SINKS = {
    "gpt-oss": GptOssConfig(
        **SIZE, head_dim=8, sliding_window=WINDOW, layer_types=MIXED, num_local_experts=2, num_experts_per_tok=1
    )
}
SOFT_CAPPED = {
    "gemma2, soft cap": Gemma2Config(**GEMMA, attn_logit_softcapping=1.0),
    "gemma2, soft cap, sliding": Gemma2Config(**GEMMA, attn_logit_softcapping=1.0, layer_types=SLIDING),
}
HYBRIDS = {
    "qwen3-next": Qwen3NextConfig(
        **THREE,
        **EXPERTS,
        head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        shared_expert_intermediate_size=8,
    ),
    "jamba": JambaConfig(
        **THREE,
        attn_layer_period=3,
        attn_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        use_mamba_kernels=False,
    ),
}


def build(config: Any, attention: str = "eager") -> Any:
    """A model with random weights, in evaluation mode; the same for the same configuration."""
    torch.manual_seed(0)
    try:
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention).eval()
    except (OSError, ValueError) as error:
        if "offline mode" not in str(error):
            raise
        # Before 5.16 transformers fetches a kernel for some models, whatever the configuration says.
        pytest.skip(str(error))
