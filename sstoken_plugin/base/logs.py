"""Loggers whose sentences stay one line each, whatever names stand in them, and one whose sentences every user sees."""

from __future__ import annotations

import logging

from sstoken_plugin.base.visible_text import one_line

# Of what is announced, unless an integration has chosen another.
OWN = "sstoken_plugin.run"
_announcer = OWN


def logger(name: str) -> logging.Logger:
    """Return the logger of a module. A line break in a folder's or a token's name does not begin a line of its own."""
    log = logging.getLogger(name)
    log.addFilter(_on_one_line)
    return log


def announce_as(name: str) -> None:
    """Let what is announced come from the logger of a name, as where a framework shows its own loggers only."""
    global _announcer
    _announcer = name


def announce(sentence: str, *args: object) -> None:
    """Log at INFO what users are to see, also where nobody has set up logging or it shows warnings only."""
    log = logger(_announcer)
    if _announcer == OWN:
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)
        if not _is_shown(log):
            log.addHandler(logging.StreamHandler())
    log.info(sentence, *args)


def _is_shown(log: logging.Logger) -> bool:
    """Tell whether a handler takes what a logger logs at INFO."""
    place: logging.Logger | None = log
    while place is not None:
        if any(handler.level <= logging.INFO for handler in place.handlers):
            return True
        place = place.parent if place.propagate else None
    return False


def _on_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = one_line(record.getMessage()), ()
    return True
