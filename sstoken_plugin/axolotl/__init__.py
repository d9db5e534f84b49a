"""Axolotl: `plugins: [sstoken]`."""

# Below "axolotl", because its logging shows other loggers from warnings on only.
SHOWN = "axolotl.plugins.sstoken"
