"""The option `--arms` of `axolotl sstoken-compare`: names of arms, and their settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from sstoken_plugin.selection.config import SSTokenConfig, nearest
from sstoken_plugin.selection.selectors import SELECTORS

# Trains without the plugin: what nobody could say of `selector: all`.
PLAIN = "all"
# They keep as many tokens as the selection that is compared, where that is known before it runs.
CONTROLS = ("random", "position")


def arms_of(text: str, block: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Return the `sstoken:` blocks of arms by name, None for plain training.

    Args:
        text: as the option has it.
        block: settings of all arms. The controls have the share of tokens that the selections come to, see
            `SSTokenConfig.share`, or that the block does, if the selections differ in it.

    Raises:
        ValueError: one of them is no arm; one sentence with the fix.
    """
    asked = _split(text)
    found: dict[str, dict[str, Any] | None] = {}
    for name, settings in asked:
        if name in found:
            raise ValueError(f"--arms: {name} is there twice; give one a name of its own, as in mine:selector={name}.")
        found[name] = _arm(name, settings, block)
    if len(found) < 2:
        other = "sstoken" if PLAIN in found else PLAIN
        raise ValueError(
            f"--arms: {text!r} names fewer than two arms, so that there is nothing to compare; add `{other}`."
        )
    return _with_share(found, {name for name, settings in asked if "ratio" in settings}, block)


def _arm(name: str, settings: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `sstoken:` block of one arm, see `arms_of`."""
    if name == PLAIN:
        if settings:
            raise ValueError(f"--arms: {PLAIN} is plain training, which has no settings; name the arm otherwise.")
        return None
    if name not in SELECTORS and not settings:
        raise ValueError(
            f"--arms: {name} is no selector; the nearest one is {nearest(name, SELECTORS)}. An arm with a name of "
            f"its own has settings, as in {name}:ratio=0.8."
        )
    found = {**block, **({"selector": name} if name in SELECTORS else {}), **settings}
    try:
        SSTokenConfig.from_block(found)
    except ValueError as error:
        raise ValueError(f"--arms: {name}: {error}") from None
    return found


def _with_share(
    arms: Mapping[str, dict[str, Any] | None], own: Collection[str], block: Mapping[str, Any]
) -> dict[str, dict[str, Any] | None]:
    """Return arms in which controls keep as many tokens as the selection, but for those with a ratio of their own."""
    selections = {name: SSTokenConfig.from_block(arm) for name, arm in arms.items() if arm is not None}
    shares = {each.share for each in selections.values() if each.selector not in CONTROLS}
    controls = [name for name, each in selections.items() if each.selector in CONTROLS and name not in own]
    known = shares - {None}
    share = known.pop() if len(known) == 1 else SSTokenConfig.from_block(block).share
    if controls and (share is None or shares == {None}):
        raise ValueError(
            f"--arms: how many tokens {controls[0]} should keep does not follow from the arms beside it or from the "
            "`sstoken:` block, as of a threshold it is known once that has run; set it, as in "
            f"{controls[0]}:ratio=0.95, or leave {controls[0]} out."
        )
    return {**arms, **{name: {**(arms[name] or {}), "ratio": share} for name in controls}}


def _split(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Split an option into names with settings: a part with `=` and no name before it belongs to the name before."""
    found: list[tuple[str, dict[str, Any]]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        left, equals, value = part.partition("=")
        name, colon, key = left.partition(":")
        if colon or not equals:
            found.append((name.strip(), {}))
        else:
            key = name
        if not equals:
            if colon:
                raise ValueError(f"--arms: {part} has no setting; write one as in {name}:ratio=0.8.")
            continue
        if not found or not found[-1][0]:
            raise ValueError(
                f"--arms: {part} is a setting of no arm; write a name before it, as in mine:{part.lstrip(':')}."
            )
        if not value.strip():
            raise ValueError(f"--arms: {part} has no value; write one as in {key}=0.8.")
        settings, key = found[-1][1], key.strip()
        if key in settings:
            raise ValueError(f"--arms: {found[-1][0]} has {key} twice; remove one.")
        try:
            settings[key] = yaml.safe_load(value)
        # It raises the latter for a date that is none.
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"--arms: the value of {part} cannot be read; write one as in {key}=0.8.") from error
    return found
