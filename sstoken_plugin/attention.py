"""Prompt attention: how much of a token's attention falls on the prompt, measured inside one layer.

Attention output is probabilities times values. Called once more with values that are 1 at prompt tokens
and 0 elsewhere, a layer's own attention function returns the probability mass on the prompt, for any
kernel, mask, window, soft cap or grouping of heads, in memory linear in the tokens.

The layer is reached through transformers' attention interface: a module looks its attention function up
by the name in `module.config` at each call, so a copied config with another name diverts that one module.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sstoken_plugin.modes import trial_tokens, without_trace

_DIVERTED = "sstoken_diverted"
_OBSERVER = "_sstoken_observer"

# Rows of probabilities sum to 1; what low-precision kernels lose stays well below this.
_MASS_TOLERANCE = 0.02


@dataclass(frozen=True)
class _Call:
    """One call of a layer's attention function: query [B, H, S, D], key [B, H_kv, S, D], value likewise."""

    module: Any
    function: Callable[..., tuple[Tensor, Any]]
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    arguments: dict[str, Any]


_Observer = Callable[[_Call], None]


@contextmanager
def _divert(modules: Sequence[Any], observer: _Observer) -> Iterator[None]:
    """Let `observer` see the next attention call of each module; the call itself is not changed."""
    original = [(module, module.config) for module in modules]
    try:
        for module, config in original:
            diverted = copy.copy(config)
            # Not the property: its setter also writes into configs shared with other modules.
            diverted._attn_implementation_internal = _DIVERTED
            diverted.__dict__[_OBSERVER] = (observer, config)
            module.config = diverted
        yield
    finally:
        for module, config in original:
            module.config = config


# Compiled, it would be compiled anew for every batch: the observer is another object each time.
@torch.compiler.disable
def _diverted_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Any]:
    observer, config = module.config.__dict__[_OBSERVER]
    # The real function may read its own name from the module, and a recomputation must not come here again.
    module.config = config
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)
    result = function(module, query, key, value, attention_mask, **kwargs)
    with torch.no_grad():
        observer(_Call(module, function, query, key, value, attention_mask, kwargs))
    return result


ALL_ATTENTION_FUNCTIONS.register(_DIVERTED, _diverted_attention)


@dataclass(frozen=True)
class SoftmaxLayer:
    """An attention module whose calls pass through the attention interface.

    Attributes:
        module: the module.
        name: its name in the model.
        sees_whole_sample: False for a sliding window or chunks.
    """

    module: nn.Module
    name: str
    sees_whole_sample: bool


def softmax_layers(model: PreTrainedModel) -> list[SoftmaxLayer]:
    """Find the layers with softmax attention, in the order of the forward pass.

    One forward pass over eight tokens shows which modules call the attention interface; linear
    attention, convolutions and state-space layers never do. Where a model has layers that see the
    whole sample and others with sliding windows, only the former are returned.

    Args:
        model: an unwrapped causal language model, with or without adapter. It is not changed.
    """
    candidates = {
        module: name
        for name, module in model.named_modules()
        if not isinstance(module, PreTrainedModel)
        and hasattr(getattr(module, "config", None), "_attn_implementation_internal")
    }
    found: list[SoftmaxLayer] = []

    def observe(call: _Call) -> None:
        found.append(SoftmaxLayer(call.module, candidates[call.module], _sees_whole_sample(call)))

    tokens = trial_tokens(model)
    with without_trace(model), _divert(list(candidates), observe):
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return [layer for layer in found if layer.sees_whole_sample] or found


def _sees_whole_sample(call: _Call) -> bool:
    layer_types = getattr(call.module.config, "layer_types", None)
    if layer_types and getattr(call.module, "layer_idx", None) is not None:
        return layer_types[call.module.layer_idx] == "full_attention"
    return call.arguments.get("sliding_window") is None


class PromptAttention:
    """Measures prompt attention in one layer during forward passes (Eq. 7).

    Attributes:
        layer: the layer measured.
        description: the layer in words.
        mass: float32 [B, S] after a forward pass inside `measure`: the share of each token's attention
            that falls on prompt tokens of its sample, averaged over the heads. None before.
    """

    def __init__(self, layer: SoftmaxLayer, description: str):
        self.layer = layer
        self.description = description
        self.mass: Tensor | None = None
        self._prompt: Tensor | None = None
        self._unchecked = True

    @classmethod
    def of(cls, model: PreTrainedModel, attention_layer: int) -> PromptAttention:
        """Choose a layer of the model by its index among the layers with softmax attention.

        Raises:
            ValueError: the model has no such layer; the sentence names `sstoken.attention_layer`.
        """
        layers = softmax_layers(model)
        if not layers:
            raise ValueError(
                f"{type(model).__name__} ({model.config.model_type}) has no layer with softmax attention that "
                "passes through transformers' attention interface, so prompt attention cannot be measured; set "
                "sstoken.selector: rel and sstoken.warmup_selector: all, which do without."
            )
        if not -len(layers) <= attention_layer < len(layers):
            raise ValueError(
                f"sstoken.attention_layer: {attention_layer} is out of range: this model has {len(layers)} such "
                f"layers; use {-len(layers)} to {len(layers) - 1}, or -1 for the last."
            )
        index = attention_layer % len(layers)
        layer = layers[index]
        return cls(layer, f"attention layer {index} of {len(layers)} ({layer.name})")

    @contextmanager
    def measure(self, prompt: Tensor) -> Iterator[None]:
        """Measure in the first forward pass inside the block; nothing stays behind after it.

        Args:
            prompt: bool [B, S], the prompt tokens of the batch that will be run.
        """
        self.mass, self._prompt = None, prompt
        try:
            with _divert([self.layer.module], self._observe):
                yield
        finally:
            self._prompt = None

    def _observe(self, call: _Call) -> None:
        assert self._prompt is not None
        # The width of the values stays, because kernels want equal head sizes; two columns are used.
        indicator = torch.zeros_like(call.value)
        indicator[..., 0] = self._prompt[:, None, :].to(call.value.dtype)
        indicator[..., 1] = 1
        arguments = {**call.arguments, "dropout": 0.0}
        output = call.function(call.module, call.query, call.key, indicator, call.mask, **arguments)[0]
        mass = output[..., :2].float().mean(dim=2)
        self.mass = mass[..., 0]
        if self._unchecked:
            self._check(mass[..., 1], has_sinks=call.arguments.get("s_aux") is not None)
            self._unchecked = False

    def _check(self, total: Tensor, has_sinks: bool) -> None:
        """With values of 1 everywhere the mass must be 1 (less where attention sinks take a share)."""
        # Rows of padding may be anything, so the best row of each sample row is judged.
        best = total.amax(dim=1)
        if bool(((best > 1 + _MASS_TOLERANCE) | ((best < 1 - _MASS_TOLERANCE) & (not has_sinks))).any()):
            raise ValueError(
                f"Attention in {self.layer.name} does not sum to 1 (it sums to {best.min():.3f} to "
                f"{best.max():.3f}), so prompt attention cannot be measured; set sstoken.selector: rel and "
                "sstoken.warmup_selector: all, which do without."
            )
