"""LLaMA-Factory's command with token selection, without the start-up file."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import sstoken_startup_llamafactory as startup

MODULE = "sstoken_plugin.llamafactory"


def main() -> None:
    """Do what `llamafactory-cli` would do with the words of the command line.

    Ranks are this module again, whether LLaMA-Factory starts them (FORCE_TORCHRUN=1, or several GPUs) or a user, as
    `torchrun --nproc_per_node 2 -m sstoken_plugin.llamafactory train c.yaml`.

    Raises:
        ValueError: this LLaMA-Factory reads its arguments in another way.
    """
    read_blocks()
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.argv[1:2] == ["train"]:
        # LLaMA-Factory's own command would start ranks once more.
        del sys.argv[1]
        import_module("llamafactory.train.tuner").run_exp()
        return
    # It gives this name to torchrun, beside the words behind `train`.
    import_module("llamafactory.launcher").__file__ = f"-m {MODULE} train"
    import_module("llamafactory.cli").main()


def read_blocks() -> None:
    """Wrap what the start-up file wraps, where it has not done so."""
    name = "llamafactory.hparams.parser"
    module = import_module(name)
    for attribute, wrap in startup.WATCHED[name].items():
        found = getattr(module, attribute, None)
        if found is None:
            raise ValueError(
                f"sstoken: this LLaMA-Factory has no {name}.{attribute}, so that no `sstoken:` block could be read; "
                "install LLaMA-Factory 0.9.5."
            )
        if found.__module__ != startup.__name__:
            setattr(module, attribute, wrap(found))
