"""Which ms-swift the tests ran on: its trainer computes the loss itself, so that each release may be another."""

from __future__ import annotations

from sstoken_plugin.base import versions

SUPPORTED = (4, 6)


def refuse_unsupported() -> None:
    """Refuse an ms-swift that no test has run on; see `versions.refuse_unsupported`."""
    versions.refuse_unsupported("ms-swift", "ms-swift", SUPPORTED, SUPPORTED)
