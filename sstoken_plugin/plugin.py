"""The dotted names of version 0.1, `sstoken_plugin.plugin.SSTokenPlugin` in `plugins:`, and of Axolotl's schema."""

from sstoken_plugin.axolotl.plugin import SSTokenArgs, SSTokenPlugin

__all__ = ["SSTokenArgs", "SSTokenPlugin"]
