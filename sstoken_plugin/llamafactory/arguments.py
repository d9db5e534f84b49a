"""Takes the `sstoken:` block out of what LLaMA-Factory reads, and lets its trainer find it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sstoken_plugin.base.visible_text import told_on_one_line
from sstoken_plugin.llamafactory import refusals, releases, workflow
from sstoken_plugin.llamafactory.refusals import Arguments
from sstoken_plugin.selection.config import SSTokenConfig, nearest

BLOCK = "sstoken"


@dataclass(frozen=True)
class Asked:
    """What a YAML asks for; it hangs on LLaMA-Factory's `finetuning_args`, which its trainer is given.

    Attributes:
        config: the settings of the selection.
        given: everything else.
    """

    config: SSTokenConfig
    given: Arguments

    @classmethod
    def of(cls, trainer: Any) -> Asked | None:
        """Return what the YAML of a trainer's run asked for; None if there was no block."""
        found = getattr(getattr(trainer, "finetuning_args", None), BLOCK, None)
        return found if isinstance(found, cls) else None


@told_on_one_line()
def parse(parse_args: Callable[..., Any], parser: Any, args: Any, *rest: Any, **options: Any) -> Any:
    """Parse arguments that have an `sstoken` key of some spelling, in place of LLaMA-Factory's `_parse_args`.

    Args:
        parse_args: the original.
        parser: the HfArgumentParser.
        args: the YAML with the overrides of the command line, or the words of a command line.
        rest: as the original takes them.
        options: as the original takes them.

    Returns:
        What the original returns, one object of arguments for each class of the parser.

    Raises:
        ValueError: the block, or what stands beside it, is not valid; one sentence with key and way out.
    """
    config = _config(args)
    releases.refuse_unsupported()
    plain = {key: value for key, value in args.items() if key != BLOCK}
    groups = parse_args(parser, plain, *rest, **options)
    given = Arguments(*groups)
    if given.get("use_ray"):
        refusals.refuse(config, given)
    for group in groups:
        if hasattr(group, "finetuning_type") and given.get("output_dir") is not None:
            refusals.refuse(config, given)
            workflow.take_over()
            setattr(group, BLOCK, Asked(config, given))
            return groups
    if options.get("allow_extra_keys"):
        # Only looked through, as for settings of Ray: the training arguments are read in another call.
        return groups
    raise ValueError(f"{BLOCK}: it selects tokens of a training; remove it here, where nothing is trained.")


def _config(args: Any) -> SSTokenConfig:
    if not isinstance(args, Mapping):
        raise ValueError(
            f"{BLOCK}: settings are read from a YAML: write a block `{BLOCK}:` into it, and changes after its name, as "
            f"in `llamafactory-cli train c.yaml {BLOCK}.ratio=0.4`."
        )
    from sstoken_startup_llamafactory import ours

    for key in ours(args):
        if key == BLOCK:
            continue
        if str(key).startswith(f"{BLOCK}."):
            inner = nearest(str(key).removeprefix(f"{BLOCK}."), SSTokenConfig.model_fields)
            raise ValueError(
                f"{key} is not a key of the YAML; write `{BLOCK}:` and, indented below it, `{inner}: ...`."
            )
        raise ValueError(f"{key} is not a key; the nearest one is `{BLOCK}:`.")
    return SSTokenConfig.from_block(args[BLOCK])
