"""The arms of every experiment of docs/evidence.md, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A claim that the selection helps must hold against each of them.
AGAINST = ("all", "random", "position")


def arms(base_model: str) -> dict[str, Mapping[str, Any] | None]:
    """Return the arms that every experiment has: see docs/configuration.md and docs/experiments.md.

    Args:
        base_model: folder of the model before training.
    """
    return {
        "all": None,
        # As many tokens as the others train on.
        "shorter": {"changes": {"num_epochs": 0.6}},
        "random": {"selector": "random"},
        "position": {"selector": "position"},
        "attention": {"selector": "attention"},
        "rel": {"selector": "rel"},
        "sstoken": {},
        "paper": {"warmup_ratio": 0, "keep_eos": False},
        # Their code ranks by attention alone for the first 10,000 of 50,000 samples, and has no rule for ends.
        "authors": {"warmup_ratio": 0.2, "warmup_selector": "attention", "keep_eos": False},
        "warmup-all": {"warmup_selector": "all"},
        "lowest_base_loss": {"selector": "lowest_base_loss"},
        "probability": {"selector": "probability"},
        # The loss now minus that of the base is REL with the opposite sign: what has improved most is dropped, as whole
        # samples are in TailSFT.
        "tailsft": {"selector": "reference", "history": base_model},
    }
