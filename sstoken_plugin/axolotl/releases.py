"""What differs between the supported releases of Axolotl: the rest of the package is written for the newest.

Each difference says since which release it is there and when it may go. That `axolotl` takes commands of other packages
(since 0.18) needs no code: before, they run as `python -m sstoken_plugin`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sstoken_plugin.base import versions

# The oldest and the newest that all tests ran on: docs/support.md. pyproject.toml says the same to pip.
OLDEST, NEWEST = (0, 17), (0, 21)


def release() -> tuple[int, ...]:
    """Return the release of the installed Axolotl without its patch number, such as (0, 21); () if it has none."""
    return versions.release_of("axolotl")[:2]


def refuse_unsupported() -> None:
    """Refuse an Axolotl that no test has run on, before anything of it is imported.

    Raises:
        ValueError: one sentence with the supported range. No ImportError, because Axolotl up to 0.20 goes on without a
            plugin that raises one.
    """
    versions.refuse_unsupported("axolotl", "Axolotl", OLDEST, NEWEST, "plugins")


def asks_for_fsdp1(cfg: Mapping[str, Any]) -> bool:
    """Tell whether a YAML asks for the first FSDP, which flattens weights."""
    settings = cfg.get("fsdp_config") or {}
    if not isinstance(settings, Mapping) or not (settings or cfg.get("fsdp")):
        return False
    named = cfg.get("fsdp_version") or settings.get("fsdp_version") or settings.get("version")
    # Since 0.20 a YAML that names no version means 2, and Axolotl refuses 1. The other default may go with 0.19.
    return str(named or (2 if release() >= (0, 20) else 1)) == "1"


def packing_separates_samples(cfg: Mapping[str, Any]) -> bool:
    """Tell whether the samples of a packed row do not see each other; only a validated YAML can deny it."""
    # Since 0.18 under this name. Before, there is just attn_supports_packing, and it is right: it may go with 0.17.
    separated = cfg.get("attn_decontaminates_packing", cfg.get("attn_supports_packing"))
    return separated is not False
