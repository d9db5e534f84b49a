"""Lets `plugins: [sstoken]` work, and stops a run whose `sstoken:` block nobody would read.

Axolotl itself loads plugins by the dotted path of a class only, and ignores keys that it does not know. The
interpreter imports this module at start, through the line in `sstoken_startup.pth`. It puts one finder on
`sys.meta_path`, which compares names and does nothing else until somebody imports one of a few modules of Axolotl, or
of another trainer; then it wraps functions of that module. It imports nothing that the interpreter has not loaded
already and never raises. `SSTOKEN_STARTUP=0` in the environment turns it off. What is wrapped in other trainers than
Axolotl is in a file of each. Reasons and an upstream proposal: docs/plugin-name.md.
"""

import os
import sys

SHORT_NAME = "sstoken"
DOTTED_NAME = "sstoken_plugin.SSTokenPlugin"
DOTTED_NAMES = (DOTTED_NAME, "sstoken_plugin.plugin.SSTokenPlugin")
PLAIN_NAMES = ("sstoken", "sstokenplugin")
HOW_TO_NAME = (
    f"plugins: is a list of names; write it as in `plugins: [{SHORT_NAME}]`, and settings into a block `{SHORT_NAME}:` "
    "of their own."
)


def is_ours(name):  # type: ignore[no-untyped-def]
    """Tell whether an entry of `plugins:` names this plugin; since 0.21 Axolotl takes `module:Class` too."""
    return str(name).replace(":", ".") in (SHORT_NAME, *DOTTED_NAMES)


def is_misspelt(name):  # type: ignore[no-untyped-def]
    """Tell whether an entry of `plugins:` means this plugin and is none that can be loaded."""
    from difflib import SequenceMatcher

    def is_alike(part):  # type: ignore[no-untyped-def]
        plain = "".join(filter(str.isalnum, part.lower()))
        return plain.startswith("s") and max(SequenceMatcher(None, plain, one).ratio() for one in PLAIN_NAMES) >= 0.8

    parts = str(name).replace(":", ".").split(".")
    if is_ours(name) or parts[0] == "sstoken_plugin":
        return not is_ours(name)
    place = next((number for number, part in enumerate(parts) if is_alike(part)), None)
    if place is None or len(parts) == 1:
        return place is not None
    # A module or a class of somebody else's may be called alike; Axolotl has none.
    is_class = place == len(parts) - 1 and place > 0 and parts[0] != "axolotl"
    return not (is_class or can_be_imported(".".join(parts[: place + 1])))


def means_ours(key):  # type: ignore[no-untyped-def]
    """Tell whether a key of a YAML, or an option of a command line, means the selection, misspelt or not."""
    from difflib import SequenceMatcher

    name = str(key).lower().lstrip("-").split("=")[0].split(".")[0].split(":")[0]
    plain = "".join(filter(str.isalnum, name))
    return plain.startswith(SHORT_NAME) or (plain[:1] == "s" and SequenceMatcher(None, plain, SHORT_NAME).ratio() > 0.8)


def can_be_imported(package):  # type: ignore[no-untyped-def]
    """Tell whether there is a module of a name; one that others have made by hand has no spec."""
    from importlib.util import find_spec

    try:
        return package in sys.modules or find_spec(package) is not None
    except Exception:
        return False


def resolve_short_name(load_plugin):  # type: ignore[no-untyped-def]
    """Wrap Axolotl's `load_plugin`: our short name stands for our dotted one, and all other plugins pass through."""

    def load_plugin_by_name(plugin_name):  # type: ignore[no-untyped-def]
        # A text in place of a list is read letter by letter.
        if not isinstance(plugin_name, str) or len(plugin_name) == 1:
            raise ValueError(HOW_TO_NAME)
        if is_misspelt(plugin_name):
            raise ValueError(f"plugins: {plugin_name!r} is no plugin; did you mean '{SHORT_NAME}'?")
        return load_plugin(DOTTED_NAME if plugin_name == SHORT_NAME else plugin_name)

    return load_plugin_by_name


def refuse_idle_block(validate_config):  # type: ignore[no-untyped-def]
    """Wrap Axolotl's `validate_config`: a block of settings for a plugin that is not named would do nothing."""

    def validate_named(cfg, *args, **kwargs):  # type: ignore[no-untyped-def]
        plugins = cfg.get("plugins") or []
        if isinstance(plugins, dict) and any(map(is_ours, plugins)):
            raise ValueError(HOW_TO_NAME)
        plugins = plugins if isinstance(plugins, (list, tuple)) else [plugins]
        names = [name for name in plugins if isinstance(name, str)]
        idle = [key for key in cfg if str(key).split(".")[0] == SHORT_NAME and cfg[key] is not None]
        if idle and not any(map(is_ours, plugins)):
            raise ValueError(
                f"{idle[0]}: it would do nothing, because `plugins:` does not name the plugin; write `plugins: "
                f"[{', '.join([*names, SHORT_NAME])}]`, or remove `{idle[0]}` for a run without it."
            )
        return validate_config(cfg, *args, **kwargs)

    return validate_named


def refuse_what_is_no_name(prepare_plugins):  # type: ignore[no-untyped-def]
    """Wrap `prepare_plugins`, which Axolotl has since 0.21: it takes names apart before it loads any."""

    def prepare_named(cfg, *args, **kwargs):  # type: ignore[no-untyped-def]
        plugins = cfg.get("plugins")
        if isinstance(plugins, (list, tuple)) and not all(isinstance(name, str) for name in plugins):
            raise ValueError(HOW_TO_NAME)
        return prepare_plugins(cfg, *args, **kwargs)

    return prepare_named


def without_logo(print_logo):  # type: ignore[no-untyped-def]
    """Wrap what prints Axolotl's logo on stdout before it hands over to a command: ours print what a pipe can read."""

    def print_unless_ours():  # type: ignore[no-untyped-def]
        if not any(word.startswith(f"{SHORT_NAME}-") for word in sys.argv[1:2]):
            print_logo()

    return print_unless_ours


# Module that is waited for: functions in it, and what wraps them; or the module of ours whose WATCHED says so.
WATCHED = {
    "axolotl.cli.art": {"print_axolotl_text_art": without_logo},
    "axolotl.integrations.base": {"load_plugin": resolve_short_name},
    "axolotl.utils.config": {"validate_config": refuse_idle_block, "prepare_plugins": refuse_what_is_no_name},
    "llamafactory.hparams.parser": "sstoken_startup_llamafactory",
    "llamafactory.v1.config.arg_parser": "sstoken_startup_llamafactory",
    "trl.scripts.utils": "sstoken_startup_trl",
    "swift.trainers.mixin": "sstoken_startup_swift",
    "swift.megatron.trainers.base": "sstoken_startup_swift",
}


class Watcher:
    """A meta-path finder that finds nothing itself: it waits for its modules, then is gone."""

    waiting = WATCHED.copy()  # ClassVar would have to be imported
    looking = set()  # type: ignore[var-annotated]  # noqa: RUF012

    @classmethod
    def find_spec(cls, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Return None for every module but those watched, whose loaders it wraps."""
        if name not in cls.waiting or name in cls.looking:
            return None
        cls.looking.add(name)
        try:
            wrappers = cls.waiting[name]
            if isinstance(wrappers, str):
                wrappers = __import__(wrappers).WATCHED[name]
            from importlib.util import find_spec

            spec = find_spec(name)
            execute = spec.loader.exec_module  # type: ignore[union-attr]

            def exec_module(module):  # type: ignore[no-untyped-def]
                execute(module)
                # Not before: somebody may only look whether the module is there.
                cls.waiting.pop(name, None)
                if not cls.waiting and cls in sys.meta_path:
                    sys.meta_path.remove(cls)  # type: ignore[arg-type]
                for attribute, wrap in wrappers.items():  # type: ignore[union-attr]
                    try:
                        setattr(module, attribute, wrap(getattr(module, attribute)))
                    except Exception:
                        # Another release: what is there stays as it is.
                        continue

            spec.loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
            return spec
        except Exception:
            # The ordinary finders go on as if this one did not exist.
            return None
        finally:
            cls.looking.discard(name)


if os.environ.get("SSTOKEN_STARTUP") != "0":
    sys.meta_path.insert(0, Watcher)  # type: ignore[arg-type]
