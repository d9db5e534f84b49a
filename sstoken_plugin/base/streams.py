"""What a terminal can show."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any


def replace_what_streams_lack() -> None:
    """Let characters that stdout or stderr have no encoding for show as `?`, instead of losing the line or the run."""
    # Libraries put others before those of the process, as colorama does.
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        # The second is Python's own choice in the locale of POSIX.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def has_colours(stream: Any, environment: Mapping[str, str]) -> bool:
    """Tell whether a stream shows colours, and is to (https://no-color.org)."""
    is_terminal = getattr(stream, "isatty", lambda: False)()
    return bool(is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb")
