"""How selection gets into ms-swift's trainer; `attach` finds this module by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sstoken_plugin.base.logs import logger
from sstoken_plugin.engine.kernels import liger_fused_linear_cross_entropy
from sstoken_plugin.engine.run import Names, Run
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.swift import refusals, releases
from sstoken_plugin.swift.front import SwiftFront
from sstoken_plugin.swift.settings import WITHOUT
from sstoken_plugin.training.bridge import Bridge

LOG = logger(__name__)
NAMES = Names(
    trainer="ms-swift",
    data="dataset",
    adapter_init="init_weights",
    rate_warmup="warmup_ratio or warmup_steps",
    without=WITHOUT,
    announcer="swift.sstoken",
)


class SwiftBridge(Bridge):
    """ms-swift's trainer computes the loss itself, so that a class of ours stands before it."""

    front = SwiftFront

    def run_of(self, trainer: Any, config: SSTokenConfig) -> Run:
        """Fill in what ms-swift's model and template say."""
        run = super().run_of(trainer, config)
        meta = trainer.template.template_meta
        ends = [text.strip() for text in (*meta.suffix, *meta.stop_words) if isinstance(text, str)]
        return replace(
            run,
            base_model=str(trainer.model_info.model_dir),
            dtype=trainer.model_info.torch_dtype,
            eot_tokens=(*run.eot_tokens, *ends),
            kernels=(liger_fused_linear_cross_entropy,) if trainer.args.use_liger_kernel else run.kernels,
            names=NAMES,
        )

    def refuse(self, trainer: Any, config: SSTokenConfig) -> None:
        """Refuse what the selection cannot run beside; see refusals.py."""
        releases.refuse_unsupported()
        refusals.refuse(config, trainer)
        super().refuse(trainer, config)
        for key in refusals.untested(trainer.args):
            LOG.warning("%s has not been run with ssToken yet: compare a short run with selector: all.", key)


BRIDGE = SwiftBridge()
