"""Axolotl's lifecycle, and nothing else: each hook hands over to the module that does the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator

from sstoken_plugin.axolotl import SHOWN, compatibility, refusals, releases
from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.streams import replace_what_streams_lack
from sstoken_plugin.selection.config import SSTokenConfig

# Before anything of Axolotl is imported, which in another release may be elsewhere.
releases.refuse_unsupported()

from axolotl.integrations.base import BasePlugin, PluginManager  # noqa: E402
from axolotl.utils.logging import get_logger  # noqa: E402

logger(SHOWN)
LOG = get_logger(SHOWN)


class SSTokenArgs(BaseModel):
    """What the plugin adds to Axolotl's configuration schema."""

    # None only where an earlier YAML of the process named the plugin and this one does not.
    sstoken: SSTokenConfig | None = Field(
        default=None,
        json_schema_extra={"description": "Token selection: see docs/configuration.md of sstoken-plugin."},
    )

    @model_validator(mode="before")
    @classmethod
    def _check_whole_config(cls, data: Any) -> Any:
        return {**data, "sstoken": compatibility.check(data) if compatibility.names_us(data) else None}


class SSTokenPlugin(BasePlugin):
    """`plugins: [sstoken]`.

    Axolotl keeps a plugin for the life of the process, so that each hook asks whether the YAML at hand names it.
    """

    def register(self, cfg: Any) -> None:
        """Take over overrides such as `--sstoken.ratio=0.5`, which Axolotl's launchers pass on flat."""
        if not compatibility.names_us(cfg):
            return
        replace_what_streams_lack()
        for key in [key for key in cfg if str(key).startswith("sstoken.")]:
            block = cfg.get("sstoken")
            if block is not None and not isinstance(block, Mapping):
                raise ValueError(
                    f"sstoken: {block!r} is not a block of settings that `{key}` could add to; remove one."
                )
            cfg["sstoken"] = {**(block or {}), key.removeprefix("sstoken."): cfg.pop(key)}

    def get_input_args(self) -> str | None:
        """Name the schema that Axolotl merges into its own."""
        return "sstoken_plugin.plugin.SSTokenArgs" if self._is_first() else None

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Check what only the final configuration tells, before data and model are loaded."""
        if not compatibility.names_us(cfg):
            return
        compatibility.check(cfg)
        for name, plugin in PluginManager.get_instance().plugins.items():
            if not isinstance(plugin, SSTokenPlugin) and plugin.get_trainer_cls(cfg) is not None:
                refusals.OTHER_TRAINER.refuse(name)

    def get_trainer_cls(self, cfg: Any) -> type | None:
        """Return Axolotl's trainer with token selection."""
        if not compatibility.names_us(cfg):
            return None
        from sstoken_plugin.axolotl.trainer import SSTokenTrainer

        return SSTokenTrainer

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Let the trainer build the selection for the loaded model, and say what it will do."""
        from sstoken_plugin.attachment import start
        from sstoken_plugin.axolotl.run import KERNELS, run_of

        if not compatibility.names_us(cfg) or not self._is_first():
            return
        config = compatibility.check(cfg)
        for key in compatibility.untested(cfg):
            LOG.warning("%s has not been run with ssToken yet: compare a short run with selector: all.", key)
        for key in compatibility.fused_losses(cfg):
            if key in KERNELS:
                LOG.info(
                    "ssToken computes the loss of each token with the kernel of %s, if the first batch agrees.", key
                )
            else:
                LOG.info("ssToken computes the loss of each token itself: %s serves evaluation only.", key)
        start(trainer, config, run_of(cfg))

    def _is_first(self) -> bool:
        """Tell whether this instance acts: named by its bare and its dotted name, the plugin is there twice."""
        loaded = PluginManager.get_instance().plugins.values()
        return self is next((plugin for plugin in loaded if isinstance(plugin, SSTokenPlugin)), self)
