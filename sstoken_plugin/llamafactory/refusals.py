"""What LLaMA-Factory must not be asked for beside token selection: each refusal is one sentence with the way out."""

from __future__ import annotations

from typing import Any

from llamafactory.extras.misc import is_env_enabled

from sstoken_plugin.base.refusal import Refusal, asked_for
from sstoken_plugin.selection.config import SSTokenConfig

WITHOUT = "remove the `sstoken:` block"


_OWN_LOSS = "brings its own loss over all response tokens"
_OWN_TRAINER = "trains in a trainer of its own, which selection cannot take over"
MEGATRON = Refusal("use_mca", _OWN_TRAINER, way_out="unset USE_MCA in the environment")
STAGE = Refusal("stage", "does not train on labelled tokens alone", "any but sft", "set `stage: sft`")
ALWAYS = (
    Refusal("use_dft_loss", _OWN_LOSS),
    Refusal("use_eaft_loss", _OWN_LOSS),
    Refusal("use_asft_loss", _OWN_LOSS),
    Refusal("label_smoothing_factor", "changes the loss of a token, which selection compares with the history's"),
    MEGATRON,
    Refusal("use_hyper_parallel", _OWN_TRAINER),
    Refusal("use_ray", "starts workers that have not been run with selection", way_out="unset USE_RAY"),
    Refusal("streaming", "streams its data, which has not been tested with selection"),
    Refusal("shift_attn", "lets tokens see only those of their group, and prompt attention needs the whole sample"),
    Refusal("mixture_of_depths", "lets tokens skip layers by their rank, so that losses depend on other tokens"),
    Refusal("use_kt", "computes layers outside the model, where no signal can be read"),
)
OFT = Refusal(
    "finetuning_type",
    "trains an adapter that the history switches off, which has not been tested with this kind",
    "oft",
    "set `finetuning_type: lora`, freeze or full",
)
PACKING = Refusal(
    "packing",
    "lets the samples of a row see each other, and selection scores a sample as if alone",
    "without `neat_packing`",
    "set `neat_packing: true`",
)
UNSLOTH = Refusal("use_unsloth", "computes attention in kernels that do not show it", "where prompt attention ranks")
BADAM = Refusal(
    "use_badam",
    "switches layers on and off while the history keeps the weights that train at the start",
    "where a history ranks",
)
MERGED = Refusal(
    "adapter_name_or_path",
    "merges an adapter into the base weights, which are then not those that sstoken.history needs",
    "merged (several, or `create_new_adapter`), beside a path as `sstoken.history`",
    "set history: initial",
)
MULTIMODAL = Refusal(
    "template",
    "feeds images, audio or video to the model, and selection reads text tokens only",
    "of a model that reads more than text",
    "choose a model of text",
)
REFUSALS = (STAGE, *ALWAYS, OFT, PACKING, UNSLOTH, BADAM, MERGED, MULTIMODAL)

# Ways of training that should work and have not been run on what they are made for.
UNTESTED = (
    "deepspeed", "fsdp", "fp8", "quantization_bit", "use_unsloth", "enable_liger_kernel", "use_galore", "use_apollo",
    "use_muon", "use_adam_mini", "use_llama_pro", "use_v1_kernels",
)  # fmt: skip


class Arguments:
    """All that LLaMA-Factory has read, looked up by the keys of its YAML."""

    def __init__(self, *groups: Any):
        self._groups = groups

    def get(self, key: str) -> Any:
        """Return the value of a key; None where nothing has it."""
        return next((getattr(group, key) for group in self._groups if hasattr(group, key)), None)

    @property
    def merges_adapters(self) -> bool:
        """Whether adapters become part of the base weights before training."""
        adapters = self.get("adapter_name_or_path") or []
        return len(adapters) > 1 or bool(adapters and self.get("create_new_adapter"))


def refuse(config: SSTokenConfig, given: Arguments) -> None:
    """Refuse what cannot run beside the selection.

    Args:
        config: the settings.
        given: what LLaMA-Factory has read.

    Raises:
        ValueError: one sentence with the key, the reason and the way out.
    """
    if (stage := given.get("stage")) not in (None, "sft"):
        STAGE.refuse(stage, WITHOUT)
    if is_env_enabled("USE_MCA"):
        # Becomes an argument once all of them are read.
        MEGATRON.refuse(True, WITHOUT)
    for refusal in ALWAYS:
        if value := given.get(refusal.key):
            refusal.refuse(value, WITHOUT)
    if given.get("finetuning_type") == "oft":
        OFT.refuse("oft", WITHOUT)
    if given.get("packing") and not given.get("neat_packing"):
        PACKING.refuse(True, WITHOUT)
    if given.get("use_unsloth") and config.ranks_by_attention:
        UNSLOTH.refuse(True, WITHOUT)
    if given.get("use_badam") and config.needs_history:
        BADAM.refuse(True, WITHOUT)
    if config.history_is_path and given.merges_adapters:
        MERGED.refuse(", ".join(given.get("adapter_name_or_path")), WITHOUT)


def untested(given: Arguments) -> list[str]:
    """Return the keys that ask for a way of training which nobody has tried with the selection."""
    return asked_for(UNTESTED, given.get)
