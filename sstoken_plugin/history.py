"""The history model: the model's own past, whose losses REL compares with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from peft import PeftModel
from torch import nn

from sstoken_plugin.modes import trial_tokens, without_trace

# Parameters of an adapter by PEFT's naming; whatever else trains is still there with the adapter off.
_ADAPTER_MARKS = ("lora_", "modules_to_save", "trainable_tokens")


class History(Protocol):
    """A history model.

    Attributes:
        description: what it is, in words that finish the sentence "compared with ...".
    """

    description: str

    def active(self, model: Any) -> Any:
        """Return a context manager in which forward passes of `model` are those of the history."""
        ...


class AdapterOff:
    """`history: initial` under LoRA: the same weights with the adapter switched off, at no memory."""

    description = "the model before training (adapter switched off)"

    @staticmethod
    def check(model: nn.Module, *, adapter_is_trained: bool = False) -> None:
        """Make sure that the model without its adapter is the model before training.

        Args:
            model: the unwrapped model. It is not changed.
            adapter_is_trained: whether the adapter has an effect because it was trained from none.

        Raises:
            ValueError: it is not; the sentence names `sstoken.history`.
        """
        instead = "use sstoken.selector: attention, which needs no history"
        if not isinstance(model, PeftModel):
            raise ValueError(f"sstoken.history: initial needs a LoRA adapter in this version; {instead}.")
        outside = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not any(mark in name for mark in _ADAPTER_MARKS)
        ]
        if outside:
            raise ValueError(
                f"sstoken.history: initial switches the adapter off, but {len(outside)} tensors outside it train "
                f"too ({outside[0]}, ...); freeze them (lora_bias, unfrozen_parameters), or {instead}."
            )
        if adapter_is_trained:
            return
        tokens = trial_tokens(model)
        with without_trace(model):
            now = model(input_ids=tokens, use_cache=False).logits
            with AdapterOff().active(model):
                before = model(input_ids=tokens, use_cache=False).logits
        # In low precision the same weights may give logits that differ in the last digits.
        change = (now - before).nan_to_num().abs().max()
        if change > 0.02 * before.nan_to_num(posinf=0, neginf=0).abs().max():
            raise ValueError(
                "sstoken.history: initial needs an adapter that starts without effect, and this one changes the "
                f"model already (lora_model_dir, peft_init_lora_weights); {instead}."
            )

    @contextmanager
    def active(self, model: Any) -> Iterator[None]:
        """Switch the adapter off inside the block.

        Args:
            model: the unwrapped PeftModel.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        # The tuner's own switch, because PeftModel.disable_adapter() walks the model for a status report.
        model.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            model.base_model.enable_adapter_layers()
            # Switching marks every tensor of the adapter as trained, those a user froze included.
            for parameter in trained:
                parameter.requires_grad_(True)
            for parameter in frozen:
                parameter.requires_grad_(False)
