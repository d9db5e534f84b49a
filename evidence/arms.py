"""The arms of every experiment of docs/evidence.md, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A claim that the selection helps must hold against each of them.
AGAINST = ("all", "random", "position")
# The authors' code; named, so that an arm stays what it is whatever the defaults become.
_ATTENTION_FIRST = {"warmup_selector": "attention"}
_ALL_FIRST = {"warmup_selector": "all"}
# Of the experiments with `late` arms; no other has these seeds.
LATE_SEEDS = (31, 32, 33, 34, 35)


def threshold(least: float) -> dict[str, Any]:
    """Return the settings of a threshold on the probability; named too, for the same reason."""
    return {"selector": "threshold", "min_probability": least, **_ALL_FIRST}


def arms(base_model: str, reference: str | None = None, epochs: int = 1) -> dict[str, Mapping[str, Any] | None]:
    """Return the arms that every experiment has: see docs/configuration.md and docs/experiments.md.

    Args:
        base_model: folder of the model before training.
        reference: folder of a model that was trained on clean data; None leaves the arm of that name out.
        epochs: of the other arms.
    """
    return {
        "all": None,
        # As many tokens as the others train on.
        "shorter": {"changes": {"num_epochs": 0.6 * epochs}},
        "random": {"selector": "random"},
        "position": {"selector": "position"},
        "attention": {"selector": "attention"},
        "rel": {"selector": "rel", **_ATTENTION_FIRST},
        "sstoken": _ATTENTION_FIRST,
        "paper": {"warmup_ratio": 0, "keep_eos": False},
        # Their code ranks by attention alone for the first 10,000 of 50,000 samples, and has no rule for ends.
        "authors": {"warmup_ratio": 0.2, "keep_eos": False, **_ATTENTION_FIRST},
        "warmup-all": _ALL_FIRST,
        "threshold": threshold(0.05),
        "threshold-0.01": threshold(0.01),
        "lowest_base_loss": {"selector": "lowest_base_loss"},
        "probability": {"selector": "probability"},
        # No selection: Axolotl's own weighting of each token's loss by its probability (DFT, arXiv 2508.05629).
        "dft": {"changes": {"use_dft": True}},
        # The loss now minus that of the base is REL with the opposite sign: what has improved most is dropped, as whole
        # samples are in TailSFT.
        "tailsft": {"selector": "reference", "history": base_model},
        **({"reference": {"selector": "reference", "history": reference}} if reference else {}),
    }


def confirmed() -> dict[str, Mapping[str, Any] | None]:
    """Return the arms that other seeds confirm: rules that are better than the paper's, and the controls."""
    return with_controls("sstoken", "warmup-all", "probability", "threshold")


def late(*names: str) -> dict[str, Mapping[str, Any] | None]:
    """Return the thresholds of these names, the same with a warm-up of half of the training, and the controls."""
    chosen = with_controls(*names)
    return {**chosen, **{f"{name}-late": {**(chosen[name] or {}), "warmup_ratio": 0.5} for name in names}}


def settings() -> dict[str, Mapping[str, Any] | None]:
    """Return the controls, the default, and arms that differ from it, or from `threshold`, in one key."""
    one_key: dict[str, Mapping[str, Any]] = {
        "warmup-random": {"warmup_selector": "random"},
        **{f"warmup-{share}": {"warmup_ratio": share} for share in (0.0, 0.1, 0.4)},
        **{f"gamma-{gamma}": {"gamma": gamma} for gamma in (0.0, 0.25, 0.75, 1.0)},
        **{f"ratio-{ratio}": {"ratio": ratio} for ratio in (0.4, 0.5, 0.7, 0.8, 0.9)},
        "no-keep-eos": {"keep_eos": False},
        "layer-0": {"attention_layer": 0},
        "ema": {"history": "ema"},
        "snapshot": {"history": "snapshot"},
        "threshold-0.2": threshold(0.2),
    }
    return {
        **with_controls("warmup-all", "sstoken", "threshold", "threshold-0.01"),
        **{name: {**_ALL_FIRST, **changed} for name, changed in one_key.items()},
    }


def with_controls(*names: str) -> dict[str, Mapping[str, Any] | None]:
    """Return the controls, and arms of these names; not those that read a folder."""
    return named(*AGAINST, *names)


def named(*names: str) -> dict[str, Mapping[str, Any] | None]:
    """Return arms of these names; not those that read a folder."""
    every = arms("")
    return {name: every[name] for name in names}
