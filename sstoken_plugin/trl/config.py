"""SFTConfig with the block of settings that selection has."""

import json
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from sstoken_plugin.selection.config import SSTokenConfig


# As in TRL, types are no strings: HfArgumentParser looks at them.
@dataclass
class SSTokenSFTConfig(SFTConfig):
    """Settings of an SFTTrainer that trains on selected tokens.

    Attributes:
        sstoken: the block of settings, see docs/configuration.md, as a dictionary or, on a command line, as JSON; None
            for a run without selection.

    Raises:
        ValueError: the block cannot be read, or a setting is not one; one sentence.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "sstoken"]  # noqa: RUF012

    sstoken: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Token selection as a block of settings, such as '{\"ratio\": 0.6}'."},
    )

    # Set by the trainer that selects.
    sstoken_is_read = False

    def __post_init__(self) -> None:
        """Check the block before data and model are loaded."""
        block: Any = self.sstoken
        if isinstance(block, str):
            try:
                block = json.loads(block)
            except json.JSONDecodeError:
                raise ValueError(
                    f"sstoken: {block!r} is not JSON; write --sstoken '{{\"ratio\": 0.6}}', or a block "
                    "`sstoken:` into the YAML file."
                ) from None
        if block is not None:
            SSTokenConfig.from_block(block)
        self.sstoken = block
        super().__post_init__()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the steps of the warm-up of the learning rate, which every training asks for when it begins.

        Raises:
            ValueError: the trainer is none that reads the block, and would train on every token.
        """
        if self.sstoken is not None and not self.sstoken_is_read:
            raise ValueError(
                "sstoken: the trainer does not read this block, and would train on every token; use "
                "sstoken_plugin.trl.SSTokenSFTTrainer, or set it to None."
            )
        steps: int = super().get_warmup_steps(num_training_steps)
        return steps
