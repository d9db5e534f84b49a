"""What the rest of the plugin needs to know of a YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sstoken_plugin.axolotl import SHOWN
from sstoken_plugin.axolotl.compatibility import fused_losses
from sstoken_plugin.axolotl.projections import with_plain_projections
from sstoken_plugin.axolotl.refusals import REFUSED_WITH_CACHE, WITHOUT
from sstoken_plugin.engine.kernels import cut_cross_entropy, liger_fused_linear_cross_entropy
from sstoken_plugin.engine.linear_nll import RowLosses
from sstoken_plugin.engine.run import Names, Run
from sstoken_plugin.history.inits import PLAIN_INITS

NAMES = Names(
    trainer="Axolotl",
    model="base_model",
    data="datasets",
    packing="sample_packing",
    adapter_init="peft_init_lora_weights",
    fused_losses="liger_fused_linear_cross_entropy or cut_cross_entropy",
    rate_warmup="warmup_ratio or warmup_steps",
    without=WITHOUT,
    compare=(
        "Run `axolotl sstoken-compare config.yaml`: it trains plain runs beside selected ones, with several seeds, and "
        "tells by your evaluation data."
    ),
    announcer=SHOWN,
)
# By the key that switches a kernel on.
KERNELS: dict[str, RowLosses] = {
    "cut_cross_entropy": cut_cross_entropy,
    "liger_fused_linear_cross_entropy": liger_fused_linear_cross_entropy,
}


def run_of(cfg: Mapping[str, Any]) -> Run:
    """Return what the selection needs to know of a run.

    Args:
        cfg: the whole YAML, validated.
    """
    adapter = cfg.get("lora_model_dir")
    return Run(
        base_model=str(cfg.get("base_model")),
        revision=cfg.get("revision_of_model"),
        dtype=cfg.get("torch_dtype"),
        data=", ".join(str(entry.get("path")) for entry in cfg.get("datasets") or ()),
        seed=cfg.get("seed") or 0,
        eot_tokens=tuple(cfg.get("eot_tokens") or ()),
        packs=bool(cfg.get("sample_packing")),
        starts_from=Path(adapter) if adapter else None,
        plain_init=cfg.get("peft_init_lora_weights") in PLAIN_INITS,
        can_keep_losses=not any(cfg.get(key) for key in REFUSED_WITH_CACHE),
        kernels=tuple(KERNELS[key] for key in fused_losses(cfg) if key in KERNELS),
        second_model=with_plain_projections,
        names=NAMES,
    )
