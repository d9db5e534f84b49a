"""Every family of causal language models in the installed transformers, as a tiny random model.

Families come from transformers' own tables, so that a new one is here with the release that brings it. Sizes come from
one table by the name of the attribute; what a family needs beyond that stands in `OVERRIDES`.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto import modeling_auto

VOCABULARY = 100
# Ids from here on are those of special tokens; samples are made of the others.
SPECIAL = 64
MAX_LAYERS = 4

# The first pattern that the whole name of an attribute matches gives its value.
SIZES: list[tuple[str, Any]] = [
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
    # Far more than at a usual start, so that attention is far from uniform.
    (r"initializer_range|init_std", 0.3),
    (r"is_decoder", True),
    (r".*vocab.*size.*|.*_vocab", VOCABULARY),
    (r"hidden_size(_global)?|d_model|n_embd|emb(ed)?_dim|embedding_(size|dim)|word_embed_proj_dim|dim", 32),
    (r".*(moe|expert|share).*(intermediate|hidden|ffn).*size.*|share_expert_dim", 8),
    (r"intermediate_size.*|dim_ff|.*ffn_dim|d_ff|d_inner|ffn_hidden_size|dense_intermediate_size", 48),
    (r".*head_dim|d_kv|d_head|dim_head|kv_channels|head_size|attention_head_size", 8),
    (r".*lora_rank", 16),
    (r"rotary_dim", 4),
    (r"sliding_window|.*window_size|local_attention", 4),
    (r"num_(dense|shared|nextn_predict|kv_shared|residual|lstm)_layers", 1),
    (r".*num_hidden_layers|n_layers?|num_layers|.*(en|de)coder_layers|num_blocks|depth|layers", 2),
    (r".*(key_value|kv|linear.*key).*heads", 2),
    (r".*num_.*heads|n_heads?|num_heads|.*attention_heads|.*_n_heads", 4),
    (r".*(n|num)_shared_experts", 1),
    (r"(n|num|moe_num|zero)_.*experts|num_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|top_k_experts", 2),
    # Sparse attention that a short sample already meets.
    (r"index_topk", 4),
    (r"index_(block_size|topk_blocks)", 2),
    (r"n_groups?|topk_group|num_expert_group", 1),
]
# Any other size of more than this becomes this.
LARGEST = 32

_KV_SHARED = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_COMPASS = {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}
_QWEN4 = {"indexer_budget": 8, "indexer_compress_ratio": 2, "indexer_n_heads": 2, "indexer_kv_heads": 1}
_CODEC = {"num_filters": 4, "depths": [1, 1, 1], "downsampling_ratios": [2, 2]}
_IMAGES = {"vocabulary_map": {"<image>": 98}}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "chameleon": _IMAGES,
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}, "ffn_config": {"ffn_hidden_size": 32}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "emu3": _IMAGES,
    # Up to some release after 5.9 its eager attention wants a key for each head.
    "evolla": {"num_key_value_heads": 4},
    "fast_vlm": {"vision_config": {"hidden_size": 32}},
    "florence2": {"vision_config": {"embed_dim": [8] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "gemma3n_text": {"intermediate_size": 48},
    "gemma4": {"text_config": _KV_SHARED},
    "gemma4_text": _KV_SHARED,
    "gemma4_unified": {"text_config": _KV_SHARED},
    "gemma4_unified_text": _KV_SHARED,
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0, "qk_head_dim": 8, "index_kpool": 2}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "downsample_rate": "1/2",
        # The configuration gives its Q-Former a head for each 64.
        "vision_config": {"hidden_size": 64},
        # Up to 5.16 its language model is a Llama by default, which has none.
        "text_config": dict.fromkeys(
            ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"), 0.5
        ),
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    # Each of its layers runs many times, and rounding grows with each.
    "hrm_text": {"num_layers_per_stack": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 1}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16},
    "minimax_m3_vl": {"text_config": {"layer_types": ["full_attention", "minimax_m3_sparse"]}},
    "minimax_m3_vl_text": {"layer_types": ["minimax_m3_sparse", "minimax_m3_sparse"]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [0, 1]}},
    "muse_spark": {"audio_config": {"hidden_sizes": [8] * 4}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "perception_lm": {"vision_config": {"model_args": {"embed_dim": 32}}},
    "qwen2_5_omni": {"enable_audio_output": False},
    "qwen2_5_omni_thinker": {"vision_start_token_id": SPECIAL},
    "qwen3_omni_moe": {"enable_audio_output": False},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": SPECIAL},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_hidden_layers": 2, "is_decoder": True},
    "unlimited_ocr": {"text_config": {"num_key_value_heads": 4}},
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": _CODEC,
        "semantic_tokenizer_encoder_config": _CODEC,
        "acoustic_tokenizer_chunk_size": 4,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "use_mamba_kernels": False,
    },
    "zaya": {"num_experts_per_tok": 1},
}


# What cannot be trained on text alone as a causal language model, and a pattern that the message holds, which
# is another in some releases.
CANNOT: dict[str, dict[str, str]] = {
    "wants images or sounds in every batch": {
        "blip": "pixel_values",
        "blip-2": "pixel_values",
        "git": "Expected input batch_size",
        "idefics": "pixel_values",
        "instructblip": "pixel_values",
        "instructblipvideo": "pixel_values",
        "kosmos-2": "pixel_values",
        "kyutai_speech_to_text": "must match the size of tensor",
        "molmo2": "mm_token_type_ids",
        "pi0": "'state'",
        "pix2struct": "flattened_patches",
        "pp_formulanet": "pixel_values",
        "vision-encoder-decoder": "pixel_values|sub-configurations",
        "voxtral_realtime": "input_features",
    },
    "does not predict the next token of a text": {
        "diffusion_gemma": "NoneType",
        "gemma4_assistant": "hidden_size_per_layer_input|vocab_size",
        "gemma4_unified_assistant": "shared_kv_states|vocab_size",
        "musicgen": "is invalid for input of size",
        "musicgen_melody": "is invalid for input of size",
        "udop": "decoder_start_token_id",
    },
    "has no forward pass over all its parts": {
        "qwen2_5_omni": "_forward_unimplemented",
        "qwen3_omni_moe": "_forward_unimplemented|must be a mapping",
    },
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A class of models in transformers.

    Attributes:
        name: transformers' name of its configurations.
        class_name: the class.
    """

    name: str
    class_name: str

    @property
    def model_class(self) -> Any:
        """The class itself."""
        return getattr(transformers, self.class_name)

    def config(self) -> Any:
        """A tiny configuration."""
        return tiny(self.model_class.config_class, OVERRIDES.get(self.name, {}))

    def build(self, config: Any, attention: str) -> Any:
        """A model with random weights, in evaluation mode; the same for the same configuration."""
        torch.manual_seed(0)
        with patch.object(AutoModel, "from_config", _part_without_timm):
            return self.model_class._from_config(copy.deepcopy(config), attn_implementation=attention).eval()


def _part_without_timm(config: Any, make: Any = AutoModel.from_config, **arguments: Any) -> Any:
    """Make a part of a model; nothing in place of an image tower of timm, which text passes by."""
    return nn.Identity() if config.model_type in ("gemma3n_vision", "timm_wrapper") else make(config, **arguments)


def _discover() -> dict[str, Family]:
    language, *others = (
        getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
        for task in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    )
    found: dict[str, Family] = {}
    for table in (language, *others):
        for name, class_name in table.items():
            # One name may stand for a model with images and for its language model alone.
            is_part = table is language and any(other.get(name, class_name) != class_name for other in others)
            # Several names may stand for one class.
            if class_name not in found or (_fits(name, class_name) and not _fits(found[class_name].name, class_name)):
                found[class_name] = Family(f"{name}_text" if is_part else name, class_name)
    return {family.name: family for family in found.values()}


def _fits(name: str, class_name: str) -> bool:
    """Tell whether a class seems to have been named after a name."""
    return re.sub("[-_.]|_text$", "", name) in class_name.lower()


ALL = _discover()


def tiny(config_class: type[PreTrainedConfig], overrides: Mapping[str, Any]) -> Any:
    """A small configuration of the class: sizes by name, layers of each kind, small parts, `overrides` last."""
    fields = sorted(field.name for field in dataclasses.fields(config_class))
    default = config_class()
    parts = {name for name, value in vars(default).items() if isinstance(value, PreTrainedConfig)}
    values = {name: tiny(type(getattr(default, name)), overrides.get(name, {})) for name in sorted(parts)}
    special = SPECIAL
    for name in fields:
        value = vars(default).get(name)
        small = _small(name, value)
        if small is None and name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            small, special = special, special + 1
        if small is not None and name not in parts:
            values[name] = small
    if "kv_lora_rank" in values:
        # Multi-head latent attention gives each head keys of its own.
        values |= {"num_key_value_heads": 4, "qk_head_dim": 16}
    values |= _layers(default, fields)
    return config_class(**values | {name: value for name, value in overrides.items() if name not in parts})


def _small(name: str, value: Any) -> Any:
    """The value of an attribute that makes the model small; None if it stays as it is."""
    if isinstance(value, float) and "drop" in name:
        return 0.0
    if name == "rope_parameters" and isinstance(value, dict):
        if any(isinstance(part, dict) for part in value.values()):
            return {kind: _small(name, part) for kind, part in value.items()}
        # Some models fall back on sections of their own size where the configuration has none.
        pairs = int(4 * value.get("partial_rotary_factor", 1))
        return {**value, "mrope_section": [pairs // 4, pairs // 4, pairs - 2 * (pairs // 4)]} if value else None
    for pattern, small in SIZES:
        if re.fullmatch(pattern, name) and isinstance(value, (type(small), type(None))):
            return small
    is_size = re.fullmatch(r".*_(size|dim|rank|channels|width)", name) and type(value) is int
    return LARGEST if is_size and value > LARGEST else None


def _layers(default: Any, fields: list[str]) -> dict[str, Any]:
    """One layer of each kind, where lists of the configuration tell kinds apart."""
    number = getattr(default, "num_hidden_layers", None)
    per_layer = {
        name: value
        for name, value in vars(default).items()
        if name in fields and isinstance(value, (list, tuple)) and number and len(value) == number
    }
    if not per_layer:
        return {}
    kinds: dict[str, int] = {}
    for layer, kind in enumerate(zip(*per_layer.values(), strict=True)):
        kinds.setdefault(repr(kind), layer)
    chosen = sorted(kinds.values())[:MAX_LAYERS]
    chosen = chosen if len(chosen) > 1 else [0, 1]
    own_name = default.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return {own_name: len(chosen), **{name: [value[layer] for layer in chosen] for name, value in per_layer.items()}}
