"""ssToken token selection for supervised fine-tuning (arXiv 2510.18250): `attach(trainer)`, and a plugin of Axolotl."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sstoken_plugin.attachment import attach as attach
    from sstoken_plugin.axolotl.plugin import SSTokenArgs as SSTokenArgs
    from sstoken_plugin.axolotl.plugin import SSTokenPlugin as SSTokenPlugin
    from sstoken_plugin.selection.config import SSTokenConfig as SSTokenConfig

__version__ = "0.2.0.dev0"
# Lazy, so that `import sstoken_plugin` loads neither torch nor a trainer.
_WHERE = {
    "SSTokenArgs": "sstoken_plugin.axolotl.plugin",
    "SSTokenConfig": "sstoken_plugin.selection.config",
    "SSTokenPlugin": "sstoken_plugin.axolotl.plugin",
    "attach": "sstoken_plugin.attachment",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
