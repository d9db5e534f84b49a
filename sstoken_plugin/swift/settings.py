"""The settings, which ms-swift's own arguments have no room for: the environment variable SSTOKEN.

A YAML of `swift sft c.yaml` sets it below `ENV:`, as a text or as a block.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping

import yaml

from sstoken_plugin.selection.config import SSTokenConfig

VARIABLE, CALLBACK = "SSTOKEN", "sstoken"
WITHOUT = f"unset {VARIABLE} and take `{CALLBACK}` out of `callbacks`"


def read() -> SSTokenConfig:
    """Return the settings of this run.

    Raises:
        ValueError: there are none, or they are not valid; one sentence with the way out.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        raise ValueError(
            f"callbacks: {CALLBACK} finds no settings; set {VARIABLE} in the environment, or below `ENV:` in the YAML, "
            f"as in {VARIABLE}='{{\"ratio\": 0.6}}', or {VARIABLE}='{{}}' for the defaults."
        )
    block = _parsed(text)
    if not isinstance(block, Mapping):
        raise ValueError(
            f"{VARIABLE}: {text!r} is not a block of settings; write it as in {VARIABLE}='{{\"ratio\": 0.6}}'."
        )
    return SSTokenConfig.from_block(block)


def _parsed(text: str) -> object:
    try:
        # ms-swift puts a block below `ENV:` into the environment as Python writes it, with `None` for null.
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def refuse_idle() -> None:
    """Let a run with settings stop where it makes a trainer that does not name the callback."""
    from swift.trainers.mixin import SwiftMixin

    import sstoken_startup_swift

    sstoken_startup_swift.refuse_idle_settings(SwiftMixin)
