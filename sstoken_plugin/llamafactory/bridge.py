"""How selection gets into LLaMA-Factory's trainer; `attach` finds this module by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sstoken_plugin.base.logs import logger
from sstoken_plugin.engine.kernels import liger_fused_linear_cross_entropy
from sstoken_plugin.engine.run import Names, Run
from sstoken_plugin.llamafactory import refusals, releases
from sstoken_plugin.llamafactory.arguments import Asked
from sstoken_plugin.llamafactory.refusals import Arguments
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.training.bridge import Bridge

LOG = logger(__name__)
NAMES = Names(
    trainer="LLaMA-Factory",
    model="model_name_or_path",
    data="dataset",
    packing="neat_packing",
    adapter_init="pissa_init",
    fused_losses="enable_liger_kernel",
    rate_warmup="warmup_ratio or warmup_steps",
    without=refusals.WITHOUT,
    announcer="llamafactory.sstoken",
)


class LlamaFactoryBridge(Bridge):
    """LLaMA-Factory's trainer computes no loss itself: it hands over to transformers' own."""

    def run_of(self, trainer: Any, config: SSTokenConfig) -> Run:
        """Fill in what the YAML says; a trainer that was made without one has its model and its data alone."""
        run, given = super().run_of(trainer, config), _given(trainer)
        adapters = given.get("adapter_name_or_path") or []
        return replace(
            run,
            base_model=given.get("model_name_or_path") or run.base_model,
            revision=given.get("model_revision") or run.revision,
            # Templates end turns with words that need not be the tokenizer's.
            eot_tokens=(*run.eot_tokens, *_template(trainer, "stop_words", ())),
            rows_are_packed=bool(given.get("neat_packing")),
            starts_from=Path(adapters[-1]) if adapters and not given.merges_adapters else run.starts_from,
            plain_init=run.plain_init and not given.get("pissa_init") and not given.merges_adapters,
            kernels=(liger_fused_linear_cross_entropy,) if given.get("enable_liger_kernel") else run.kernels,
            names=NAMES,
        )

    def refuse(self, trainer: Any, config: SSTokenConfig) -> None:
        """Refuse what the selection cannot run beside; see refusals.py."""
        releases.refuse_unsupported()
        given = _given(trainer)
        refusals.refuse(config, given)
        plugin = _template(trainer, "mm_plugin", None)
        if any(getattr(plugin, f"{kind}_token", None) for kind in ("image", "video", "audio")):
            refusals.MULTIMODAL.refuse(given.get("template"), refusals.WITHOUT)
        super().refuse(trainer, config)
        for key in refusals.untested(given):
            LOG.warning("%s has not been run with ssToken yet: compare a short run with selector: all.", key)


def _given(trainer: Any) -> Arguments:
    asked = Asked.of(trainer)
    return Arguments(trainer.args, trainer.finetuning_args) if asked is None else asked.given


def _template(trainer: Any, name: str, default: Any) -> Any:
    return getattr(getattr(trainer.data_collator, "template", None), name, default)


BRIDGE = LlamaFactoryBridge()
