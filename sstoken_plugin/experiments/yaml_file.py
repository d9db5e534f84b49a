"""YAML files in which no key stands twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sstoken_plugin.base.visible_text import in_short


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice in a block, of which YAML would take the last: one arm would be lost unseen."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        # Merge keys (<<) may come twice.
        if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ValueError(
                    f"{key.value} stands twice, in line {key.start_mark.line + 1} again; rename or remove one"
                )
            seen.add(key.value)
    loader.flatten_mapping(node)
    found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    for wrong in (key for key in found if not isinstance(key, str | int | float)):
        raise ValueError(f"the key {wrong} is a {type(wrong).__name__}; put it in quotes")
    return found


_construct: Callable[..., Any] = _mapping
_Loader.add_constructor("tag:yaml.org,2002:map", _construct)


def read_mapping(file: Path, example: str, place: str = "") -> dict[str, Any]:
    """Return the keys of a YAML file.

    Args:
        file: the file.
        example: what such a file has, for the message.
        place: what begins the message.

    Raises:
        ValueError: it cannot be read, has no keys, or one of them twice.
    """
    if not file.is_file():
        raise ValueError(f"{place}{file} is no file; write the path of one, from where the command is run.")
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # a subclass of SafeLoader
    except (OSError, UnicodeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{place}{file} cannot be read as YAML in UTF-8: {in_short(error)}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place}{file} holds no keys; {example}.")
    for wrong in (key for key in found if not isinstance(key, str)):
        raise ValueError(f"{place}{file} has a key that YAML reads as {wrong!r}; put it in quotes, or remove it.")
    return found
