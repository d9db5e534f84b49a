"""TRL's script for supervised fine-tuning with token selection: `python -m sstoken_plugin.trl --config c.yaml`.

Everything that `trl sft` takes, and a block `sstoken:` in the YAML file or `--sstoken '{"ratio": 0.6}'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trl
from trl import TrlParser
from trl.scripts import sft

from sstoken_plugin.trl.config import SSTokenSFTConfig
from sstoken_plugin.trl.trainer import SSTokenSFTTrainer
from sstoken_startup import means_ours

BLOCK = "sstoken"


class BlockParser(TrlParser):
    """TRL's parser, which leaves out keys of a file that it does not know; those that mean ours are refused."""

    def set_defaults_with_config(self, **keys: Any) -> Any:
        """Take the keys of a file as defaults.

        Raises:
            ValueError: a key is spelt almost as ours; one sentence.
        """
        for key in keys:
            if key != BLOCK and means_ours(key):
                raise ValueError(
                    f"{key} is not a key; write `{BLOCK}:` and, indented below it, lines such as `ratio: 0.6`."
                )
        if BLOCK in keys and keys[BLOCK] is None:
            keys[BLOCK] = {}
        return super().set_defaults_with_config(**keys)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run TRL's script with our trainer in place of its own.

    Args:
        arguments: of the command line; None for those of this process.

    Raises:
        ValueError: settings that do not go with the selection; one sentence.
    """
    # The script looks for them in `trl` when it runs.
    ours = {"SFTConfig": SSTokenSFTConfig, "SFTTrainer": SSTokenSFTTrainer, "TrlParser": BlockParser}
    for name, kind in ours.items():
        setattr(trl, name, kind)
    found = sft.make_parser().parse_args_and_config(arguments, fail_with_unknown_args=False)
    training = found[1]
    if training.sstoken is None:
        # Without a block every default; never a run without selection.
        training.sstoken = {}
    sft.main(*found)


if __name__ == "__main__":
    main()
