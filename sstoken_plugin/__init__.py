"""ssToken token selection for supervised fine-tuning (arXiv 2510.18250), as a plugin of Axolotl."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["SSTokenArgs", "SSTokenPlugin"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import sstoken_plugin` loads neither torch nor Axolotl.
    if name in __all__:
        from sstoken_plugin.axolotl import plugin

        return getattr(plugin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
