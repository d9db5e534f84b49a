"""Models of random weights for benchmarks/gpu.py, with adapters and 4-bit weights, without PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cost_model import Architecture, Method
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from sstoken_plugin.history.base import History


class LoRALinear(nn.Module):
    """A frozen linear layer and two small trained matrices, in float32 as PEFT keeps them."""

    def __init__(self, base: nn.Linear, device: torch.device, rank: int = 16, alpha: int = 32):
        super().__init__()
        like: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.base, self.scale, self.enabled = base, alpha / rank, True
        self.down = nn.Parameter(torch.randn(rank, base.in_features, **like) * base.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, **like))

    def forward(self, hidden: Tensor) -> Tensor:
        """Run the layer, with its adapter where that is on."""
        result: Tensor = self.base(hidden)
        if self.enabled:
            low = nn.functional.linear(hidden, self.down.to(hidden.dtype))
            result = result + nn.functional.linear(low, self.up.to(hidden.dtype)) * self.scale
        return result


class LoRAOff(History):
    """The model with every adapter of this file switched off."""

    description = "the model without its adapter"

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        """Switch the adapters off inside the block."""
        layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
        try:
            for layer in layers:
                layer.enabled = False
            yield model
        finally:
            for layer in layers:
                layer.enabled = True


def random_model(shape: Architecture, method: Method, device: torch.device, attention: str) -> Any:
    """Return a model in bfloat16, ready to be trained with gradient checkpointing.

    Args:
        shape: of the model.
        method: `lora` and `qlora` freeze it and give the linear layers of its blocks an adapter.
        device: where it lies.
        attention: implementation, by transformers' name.

    Raises:
        ImportError: a package that the method needs is not there.
    """
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(_config(shape), dtype=torch.bfloat16, attn_implementation=attention)
    if method != "full":
        _add_adapters(model, device, in_four_bits=method == "qlora")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _add_adapters(model: nn.Module, device: torch.device, *, in_four_bits: bool) -> None:
    model.requires_grad_(False)
    blocks: Any = model.get_submodule("model.layers")
    for parent in list(blocks.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                base = _in_four_bits(layer, device) if in_four_bits else layer
                setattr(parent, name, LoRALinear(base, device))


def _in_four_bits(layer: nn.Linear, device: torch.device) -> nn.Linear:
    """Return a layer with NF4 weights that computes in bfloat16, as QLoRA's."""
    import bitsandbytes

    options = {"compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": True}
    found: nn.Linear = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta", **options
    )
    # They are quantised on their way to the device.
    found.weight = bitsandbytes.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
    found.bias = layer.bias
    return found.to(device)


def _config(shape: Architecture) -> LlamaConfig | Qwen2Config:
    """Return transformers' configuration of a shape."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 32768,
    }
    return Qwen2Config(**sizes) if shape.qkv_bias else LlamaConfig(**sizes, head_dim=shape.head_dim)
