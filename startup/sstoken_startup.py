"""Lets `plugins: [sstoken]` work: Axolotl itself loads plugins by the dotted path of a class only.

The interpreter imports this module at start, through the line in `sstoken_startup.pth`. It puts one
finder on `sys.meta_path`, which compares a name and does nothing else until somebody imports
`axolotl.integrations.base`; then it wraps that module's `load_plugin` and removes itself. It imports
nothing that the interpreter has not loaded already and never raises. `SSTOKEN_STARTUP=0` in the
environment turns it off. Reasons and an upstream proposal: docs/plugin-name.md.
"""

import os
import sys

WATCHED = "axolotl.integrations.base"
SHORT_NAME = "sstoken"
DOTTED_NAME = "sstoken_plugin.SSTokenPlugin"


def resolve_short_name(load_plugin):  # type: ignore[no-untyped-def]
    """Wrap Axolotl's `load_plugin` so that our short name stands for our dotted one; all others pass through."""

    def load_plugin_by_name(plugin_name):  # type: ignore[no-untyped-def]
        return load_plugin(DOTTED_NAME if plugin_name == SHORT_NAME else plugin_name)

    return load_plugin_by_name


class Watcher:
    """A meta-path finder that finds nothing itself: it waits for one import, then is gone."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Return None for every module but the watched one, whose loader it wraps."""
        if name != WATCHED:
            return None
        try:
            sys.meta_path.remove(cls)  # type: ignore[arg-type]
            from importlib.util import find_spec

            spec = find_spec(name)
            execute = spec.loader.exec_module  # type: ignore[union-attr]

            def exec_module(module):  # type: ignore[no-untyped-def]
                execute(module)
                if hasattr(module, "load_plugin"):
                    module.load_plugin = resolve_short_name(module.load_plugin)

            spec.loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
            return spec
        except Exception:
            # The ordinary finders go on as if this one did not exist.
            return None


if os.environ.get("SSTOKEN_STARTUP") != "0":
    sys.meta_path.insert(0, Watcher)  # type: ignore[arg-type]
