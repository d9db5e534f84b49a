"""Loggers whose sentences stay one line each, whatever names stand in them."""

from __future__ import annotations

import logging

from sstoken_plugin.base.visible_text import one_line

# Below "axolotl", because its logging shows other loggers from warnings on only.
SHOWN = "axolotl.plugins.sstoken"


def logger(name: str) -> logging.Logger:
    """Return the logger of a module. A line break in a folder's or a token's name does not begin a line of its own."""
    log = logging.getLogger(name)
    log.addFilter(_on_one_line)
    return log


def _on_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = one_line(record.getMessage()), ()
    return True
