"""List the YAML keys of the installed Axolotl on which there is no opinion; with --check, fail on dangerous ones.

A new release brings keys that nobody has tried beside the selection. Most make a run faster or log more; one that
brings another loss, another trainer or another adapter may make it wrong in silence. Opinions are in
sstoken_plugin/axolotl/refusals.py, and on keys that need no word to the user in tests/data/axolotl_keys.yaml.

Values count as keys where a new one may be as dangerous: `adapter=mixlora`, and the plugins that come with Axolotl.
"""

from __future__ import annotations

import argparse
import ast
import enum
import fnmatch
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sstoken_plugin.axolotl import compatibility, refusals  # noqa: E402

OPINIONS = ROOT / "tests" / "data" / "axolotl_keys.yaml"

# Name of a key, a nested one with dots, a value with `=`: what Axolotl says about it, its type and its description.
Keys = Mapping[str, str]

# What makes a key dangerous, in its name or in what Axolotl says about it: another loss, other tokens to train on,
# another trainer, an adapter that cannot be switched off as LoRA can, other weights, a sample or a layer that is split
# over ranks, a plugin, which may do any of that.
DANGER = re.compile(
    "loss|entropy|objective|label|mask|train_on|to_train|collator|distil|teacher|diffus|trainer|adapter|lora|peft|parallel|"
    r"reward|prefer|\brl\b|softmax|logit|weight|quant|fp8|layers|^plugins=",
    re.IGNORECASE,
)


def installed_keys(warn: Callable[[str], None] = lambda text: None) -> dict[str, str]:
    """Return the keys of the installed Axolotl, of its plugins, and the values that count.

    Args:
        warn: is told what could not be read.
    """
    from axolotl import integrations
    from axolotl.utils.schemas import enums
    from axolotl.utils.schemas.config import AxolotlInputConfig
    from transformers.training_args import OptimizerNames

    folder = Path(next(iter(integrations.__path__)))
    plugins = dict(_sources(folder, "BasePlugin", "AdapterCapabilities"))
    keys = keys_of(AxolotlInputConfig)
    for file, tree in plugins.items():
        for name in _argument_classes(tree):
            try:
                keys = keys_of(_load(name, folder)) | keys
            except Exception as error:
                warn(f"{name}, the keys of {file.parent.name}, cannot be read: {type(error).__name__}: {error}")
    fields = AxolotlInputConfig.model_fields
    # Where Axolotl refuses and loads adapters, by name: they have no enumeration.
    places = (folder.parent / "utils" / "schemas", folder.parent / "loaders")
    trees = [tree for place in places for _, tree in _sources(place, "adapter")]
    adapters = {value for tree in trees for value in compared_with(tree, "adapter")}
    values = {
        "adapter": adapters.union(*(_registered_adapters(tree) for tree in plugins.values())),
        "attn_implementation": getattr(enums, "CANONICAL_ATTN_IMPLS", ()),
        "optimizer": {*_choices(fields["optimizer"].annotation), *_choices(OptimizerNames)},
        "rl": _choices(fields["rl"].annotation),
    }
    keys |= {f"{key}={value}": "" for key, found in values.items() for value in found}
    keys |= {f"plugins={file.relative_to(folder).parts[0]}": "" for file, tree in plugins.items() if _has_plugin(tree)}
    return keys


def keys_of(model: type[BaseModel], prefix: str = "", outer: tuple[type, ...] = ()) -> dict[str, str]:
    """Return the keys of a schema with those of the blocks inside it.

    Args:
        model: the schema.
        prefix: of the names.
        outer: schemas around it, for one that holds itself.
    """
    keys: dict[str, str] = {}
    # Until then, names of schemas that stand further down are text.
    model.model_rebuild()
    for name, field in model.model_fields.items():
        for named in _names(name, field):
            keys.setdefault(prefix + named, _text(field))
            for block in _schemas(field.annotation):
                if block not in (*outer, model):
                    inner = keys_of(block, f"{prefix}{named}.", (*outer, model))
                    # A list may hold several kinds of blocks with keys of one name.
                    for key, text in inner.items():
                        keys[key] = " ".join(dict.fromkeys([*filter(None, [keys.get(key)]), text]))
    return keys


def compared_with(tree: ast.Module, key: str) -> set[str]:
    """Return the values that source code compares a key of the configuration with: those that it knows."""

    def is_key(node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=name)):
                return bool(name == key)
            case ast.Call(args=arguments):
                return any(isinstance(each, ast.Constant) and each.value == key for each in arguments)
        return False

    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and is_key(node.left):
            found |= {text for side in node.comparators for text in _texts(side)}
    return found


def opinions(file: Path = OPINIONS) -> list[str]:
    """Return the keys on which the project has an opinion; `*` in a key stands for anything."""
    groups = yaml.safe_load(file.read_text(encoding="utf-8")).values()
    known = [key for groups_of_verdict in groups for group in groups_of_verdict for key in group["keys"].split()]
    # Nothing inside a block that is refused can do harm.
    refused = [pattern for key in refusals.REFUSED for pattern in (key, f"{key}.*", f"{key}=*")]
    tables = (refusals.REFUSED_ABOVE_ONE, refusals.REFUSED_WITH_CACHE, refusals.UNTESTED)
    return [*known, *refused, *(key.replace(": ", "=") for table in tables for key in table)]


def without_opinion(keys: Keys, known: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys on which there is no opinion, with the words that make them dangerous; those with any come first.

    Args:
        keys: see `Keys`.
        known: see `opinions`.
    """
    fused = compatibility.fused_losses(dict.fromkeys(keys, True))
    plain, patterns = {*known, *fused}, [re.compile(fnmatch.translate(each)) for each in known if "*" in each]
    unknown = [key for key in sorted(keys) if key not in plain and not any(each.match(key) for each in patterns)]
    words = {key: sorted({word.lower() for word in DANGER.findall(f"{key} {keys[key]}")}) for key in unknown}
    return dict(sorted(words.items(), key=lambda item: not item[1]))


def lines(keys: Keys, unknown: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the listing: a line for each key without an opinion, dangerous ones with a mark, and a summary."""
    for key, words in unknown.items():
        yield f"! {key} ({', '.join(words)})" if words else f"  {key}"
    dangerous = sum(map(bool, unknown.values()))
    yield (
        f"Axolotl {version('axolotl')} has {len(keys)} keys; there is no opinion on {len(unknown)} of them, "
        f"{dangerous} of which name a loss, a trainer or an adapter."
    )


def complaint(unknown: Mapping[str, list[str]]) -> str | None:
    """Return the sentence that --check fails with; None if no dangerous key is without an opinion."""
    dangerous = [key for key, words in unknown.items() if words]
    if not dangerous:
        return None
    return (
        f"Axolotl {version('axolotl')} has keys that name a loss, a trainer or an adapter and that nobody has looked "
        f"at: {', '.join(dangerous)}; refuse each in sstoken_plugin/axolotl/refusals.py or warn of it there, or "
        f"enter it in {OPINIONS.relative_to(ROOT)} with what was run or read."
    )


def _names(name: str, field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    aliases = alias.choices if isinstance(alias, AliasChoices) else [alias, field.alias]
    return list(dict.fromkeys([name, *(each for each in aliases if isinstance(each, str))]))


def _text(field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    parts = (str(field.annotation), field.description, extra.get("description"))
    return " ".join(str(part) for part in parts if part)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in () if get_origin(annotation) is Literal else get_args(annotation):
        yield from _parts(part)


def _schemas(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part


def _choices(annotation: Any) -> set[str]:
    found = set()
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            found |= {str(value) for value in get_args(part)}
        elif isinstance(part, type) and issubclass(part, enum.Enum):
            found |= {str(member.value) for member in part}
    return found


def _sources(folder: Path, *words: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the source files that hold one of the words: importing a plugin may need packages that are not there."""
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if any(word in text for word in words):
            yield file, ast.parse(text)


def _texts(node: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def _has_plugin(tree: ast.Module) -> bool:
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return any("BasePlugin" in map(ast.unparse, node.bases) for node in classes)


def _argument_classes(tree: ast.Module) -> set[str]:
    """Return the schemas that the plugins in a source file name."""
    hooks = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "get_input_args")
    return {text for hook in hooks for text in _texts(hook) if re.fullmatch(r"axolotl(\.\w+)+", text)}


def _registered_adapters(tree: ast.Module) -> set[str]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {text for call in calls if ast.unparse(call.func).endswith("AdapterCapabilities") for text in _texts(call)}


def _load(name: str, folder: Path) -> type[BaseModel]:
    module, _, kind = name.rpartition(".")
    plugin = module.split(".")[2]
    try:
        # Not as part of its package, which takes seconds to import and may need what is not installed.
        loaded = _from_file(f"axolotl_keys_of_{plugin}", folder / plugin / "args.py")
    except (ImportError, OSError):
        loaded = importlib.import_module(module)
    schema: type[BaseModel] = getattr(loaded, kind)
    return schema


def _from_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    # Pydantic looks names of types up there.
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def main() -> None:
    """Print the listing, and fail if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a key without an opinion is dangerous")
    arguments = parser.parse_args()
    keys = installed_keys(warn=lambda text: print(text, file=sys.stderr))
    unknown = without_opinion(keys, opinions())
    print(*lines(keys, unknown), sep="\n")
    if arguments.check:
        sys.exit(complaint(unknown))


if __name__ == "__main__":
    main()
