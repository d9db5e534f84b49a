"""Token selection in TRL: `from sstoken_plugin.trl import SSTokenSFTConfig, SSTokenSFTTrainer`."""

from typing import TYPE_CHECKING, Any

from sstoken_plugin.base.versions import refuse_unsupported

if TYPE_CHECKING:
    from sstoken_plugin.trl.config import SSTokenSFTConfig
    from sstoken_plugin.trl.trainer import SSTokenSFTTrainer

__all__ = ["SSTokenSFTConfig", "SSTokenSFTTrainer"]

# The oldest and the newest that all tests ran on: docs/support.md.
OLDEST, NEWEST = (1, 9), (1, 16)

# Before anything of TRL is imported, which in another release may be elsewhere.
refuse_unsupported("trl", "TRL", OLDEST, NEWEST)


def __getattr__(name: str) -> Any:
    # Lazy, so that `attach` on a trainer of TRL's loads the bridge alone.
    if name == "SSTokenSFTConfig":
        from sstoken_plugin.trl.config import SSTokenSFTConfig

        return SSTokenSFTConfig
    if name == "SSTokenSFTTrainer":
        from sstoken_plugin.trl.trainer import SSTokenSFTTrainer

        return SSTokenSFTTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
