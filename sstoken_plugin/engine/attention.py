"""Prompt attention: how much of a token's attention falls on the prompt, measured inside one layer.

Attention output is probabilities times values. Called once more with values that are 1 at prompt tokens
and 0 elsewhere, a layer's own attention function returns the probability mass on the prompt, for any
kernel, mask, window, soft cap or grouping of heads, in memory linear in the tokens.

An attention module looks its function up in transformers' attention interface at each call. While the module runs, the
interface hands out the same function, wrapped so that the call is seen. The module and its config stay as they are,
because models read the name of their attention there, and compute something else under a name that they do not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from sstoken_plugin.engine.modes import class_name, replaced, trial_tokens, without_trace

# Rows of probabilities sum to 1; what low-precision kernels lose stays well below this.
_MASS_TOLERANCE = 0.02
# Of the pass that shows the layers, where a model makes blocks of tokens; DeepSeek V4's have up to 128.
BLOCKS_TOKENS = 160

# In the names of kinds of layers.
_PART_OF_SAMPLE = ("sliding", "chunked", "local", "sparse", "compressed")


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


class _Watch:
    """Lets an observer see each attention call of one module; the call itself is not changed.

    Args:
        module: an attention module.
        observer: is called after each of its attention calls, without gradient.
    """

    def __init__(self, module: nn.Module, observer: _Observer):
        self._module: Any = module
        self._observer = observer
        # Compiled, the way to the interface would be burnt in. One object for all batches, because compiled code that
        # meets another is compiled anew.
        self._watched_forward = torch.compiler.disable(self._run)
        self._forward: Callable[..., Any]
        self._is_inside = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch inside the block; nothing stays behind after it."""
        self._forward = self._module.forward
        # Engines and kernels may have put their own on the instance.
        with replaced(self._module, "forward", self._watched_forward):
            yield

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        look_up, subscribe = AttentionInterface.get_interface, AttentionInterface.__getitem__

        # Named functions come from `__getitem__`, which older models call themselves; the default is given here.
        def with_default(interface: Any, attn_implementation: Any, default: Any) -> Any:
            return look_up(interface, attn_implementation, partial(self._call, default))

        def named(interface: Any, name: Any) -> Any:
            return partial(self._call, subscribe(interface, name))

        with (
            replaced(AttentionInterface, "get_interface", with_default),
            replaced(AttentionInterface, "__getitem__", named),
        ):
            return self._forward(*args, **kwargs)

    def _call(
        self,
        function: Callable[..., tuple[Tensor, Any]],
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        # A function may look up another one to do its work: that is the same call.
        is_outer = module is self._module and not self._is_inside
        if is_outer:
            self._is_inside = True
        try:
            result = function(module, query, key, value, attention_mask, *args, **kwargs)
            if is_outer:
                with torch.no_grad():
                    named = dict(zip(list(signature(function).parameters)[5:], args, strict=False)) if args else {}
                    self._observer(_Call(module, function, query, key, value, attention_mask, {**named, **kwargs}))
        finally:
            if is_outer:
                self._is_inside = False
        return result


@dataclass(frozen=True)
class SoftmaxLayer:
    """One attention call of a forward pass, through the attention interface.

    A module that a model runs several times, as looped models do, is as many layers.

    Attributes:
        module: the module that calls.
        name: the module's name in the model.
        call: number of the call among those of the module in one forward pass, from 0.
        calls: how many there are.
        sees_whole_sample: False for a sliding window or chunks.
    """

    module: nn.Module
    name: str
    call: int
    calls: int
    sees_whole_sample: bool


def softmax_layers(model: PreTrainedModel) -> list[SoftmaxLayer]:
    """Find the layers with softmax attention over tokens, in the order of the forward pass.

    One forward pass shows which modules call the attention interface; linear attention, convolutions and state-space
    layers never do, and some attend to other things than the tokens, such as blocks of them. Where a model has layers
    that see the whole sample and others with sliding windows, only the former are returned.

    Args:
        model: an unwrapped causal language model, with or without adapter. It is not changed.
    """
    candidates = {
        module: name
        for name, module in model.named_modules()
        if not isinstance(module, PreTrainedModel)
        and hasattr(getattr(module, "config", None), "_attn_implementation_internal")
    }
    # Module, number of keys, and whether it sees the whole sample: not the tensors of every layer at once.
    seen: list[tuple[nn.Module, int, bool]] = []

    def observe(call: _Call) -> None:
        seen.append((call.module, call.key.shape[-2], _sees_whole_sample(call)))

    tokens = trial_tokens(model, BLOCKS_TOKENS) if _makes_blocks(model.config) else trial_tokens(model)
    with without_trace(model), ExitStack() as stack:
        for module in candidates:
            stack.enter_context(_Watch(module, observe).on())
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    total = Counter(module for module, _, _ in seen)
    so_far: Counter[nn.Module] = Counter()
    found = []
    for module, keys, whole in seen:
        if keys == tokens.shape[1]:
            found.append(SoftmaxLayer(module, candidates[module], so_far[module], total[module], whole))
        so_far[module] += 1
    return [layer for layer in found if layer.sees_whole_sample] or found


def _makes_blocks(config: Any) -> bool:
    """Tell whether layers may attend to blocks of tokens, of which a short row has none."""
    text = config.get_text_config()
    return any("compress" in str(name) for name in (*text.to_dict(), *(getattr(text, "layer_types", None) or ())))


def _sees_whole_sample(call: _Call) -> bool:
    layer_types = getattr(call.module.config, "layer_types", None)
    if layer_types and getattr(call.module, "layer_idx", None) is not None:
        name = layer_types[call.module.layer_idx]
        if any(mark in name for mark in _PART_OF_SAMPLE):
            return False
        if name == "full_attention":
            return True
    return call.arguments.get("sliding_window") is None


def _in_backward() -> bool:
    # As torch.utils.checkpoint itself tells it; there is no public way.
    return torch._C._current_graph_task_id() != -1


class PromptAttention:
    """Measures prompt attention in one layer during forward passes (Eq. 7).

    Attributes:
        layer: the layer measured.
        description: the layer in words.
        mass: float32 [B, S] after a forward pass inside `measure`: the share of each token's attention
            that falls on prompt tokens of its sample, averaged over the heads. None before, and where it could not be
            measured.
    """

    def __init__(self, layer: SoftmaxLayer, description: str):
        self.layer = layer
        self.description = description
        self.mass: Tensor | None = None
        self._prompt: Tensor | None = None
        self._calls = 0
        self._keys = 0
        self._unchecked = True
        # Looked up at each call, so that a benchmark can time it.
        self._watch = _Watch(layer.module, lambda call: self._observe(call))

    @classmethod
    def of(cls, model: PreTrainedModel, attention_layer: int) -> PromptAttention:
        """Choose a layer of the model by its index among the layers with softmax attention.

        Raises:
            ValueError: the model has no such layer; the sentence names `sstoken.attention_layer`.
        """
        layers = softmax_layers(model)
        if not layers:
            raise ValueError(
                f"{class_name(model)} ({model.config.model_type}) has no layer with softmax attention that "
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
        which = f", call {layer.call + 1} of {layer.calls}" if layer.calls > 1 else ""
        return cls(layer, f"attention layer {index} of {len(layers)} ({layer.name}{which})")

    @contextmanager
    def measure(self, prompt: Tensor) -> Iterator[None]:
        """Measure in the first forward pass inside the block; nothing stays behind after it.

        Args:
            prompt: bool [B, S], the prompt tokens of the batch that will be run.
        """
        self.mass, self._prompt, self._calls, self._keys = None, prompt, 0, prompt.shape[1]
        try:
            with self._watch.on():
                yield
            if self._calls != self.layer.calls:
                # Another call than the one that was meant, or none.
                self.mass = None
        finally:
            self._prompt = None

    @property
    def why_not(self) -> str:
        """Why there is no `mass` after a forward pass, in words."""
        if self._calls != self.layer.calls:
            return (
                f"{self.layer.name} called its attention function {self._calls} times in a pass, not {self.layer.calls}"
            )
        return f"{self.layer.name} attends to {self._keys} positions, which are not the tokens of the row"

    def _observe(self, call: _Call) -> None:
        assert self._prompt is not None
        if _in_backward():
            # Gradient checkpointing calls again there.
            return
        self._calls += 1
        if self._calls != self.layer.call + 1:
            return
        self._keys = call.key.shape[-2]
        if self._keys != self._prompt.shape[1]:
            return
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
