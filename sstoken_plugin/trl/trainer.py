"""SFTTrainer that trains on selected tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl import SFTConfig, SFTTrainer

from sstoken_plugin.attachment import attach
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.training.trainer import TokenSelectionTrainer
from sstoken_plugin.trl.bridge import SelectedLoss


class SSTokenSFTTrainer(SelectedLoss, SFTTrainer, TokenSelectionTrainer):
    """An SFTTrainer whose training loss is the mean over selected tokens; evaluation is TRL's.

    Args:
        model: see SFTTrainer.
        args: see SFTTrainer; the field `sstoken` of an SSTokenSFTConfig holds settings too.
        *others: see SFTTrainer.
        sstoken: the settings of the `sstoken:` block, see docs/configuration.md; None for those of `args`, or every
            default.
        **keys: see SFTTrainer.

    Raises:
        ValueError: a setting is not one, or something else does not go with the selection; one sentence.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        *others: Any,
        sstoken: SSTokenConfig | Mapping[str, Any] | None = None,
        **keys: Any,
    ):
        block = getattr(args, "sstoken", None)
        if sstoken is not None and block is not None:
            raise ValueError("sstoken: the trainer is given settings, and so are its args; leave one of the two out.")
        settings = block if sstoken is None else sstoken
        # Before the model and the data, which may take minutes.
        config = settings if isinstance(settings, SSTokenConfig) else SSTokenConfig.from_block(settings)
        super().__init__(model, args, *others, **keys)
        attach(self, config)
