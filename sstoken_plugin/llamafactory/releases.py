"""Which LLaMA-Factory the tests ran on: it has no interface for others, so that each release may be another."""

from __future__ import annotations

from sstoken_plugin.base import versions

SUPPORTED = (0, 9, 5)


def refuse_unsupported() -> None:
    """Refuse a LLaMA-Factory that no test has run on; see `versions.refuse_unsupported`."""
    versions.refuse_unsupported("llamafactory", "LLaMA-Factory", SUPPORTED, SUPPORTED)
