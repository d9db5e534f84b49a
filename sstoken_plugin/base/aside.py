"""What a command's libraries print, set aside: its own words are alone on stdout, and the others are in a file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.visible_text import one_line


@contextmanager
def set_aside(file: Path, loggers: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """Send what is printed inside the block to a file: the standard output of this process and of its children.

    What others have left in the buffer of stdout before goes there too. Standard error goes with it, unless that is a
    terminal, where progress bars tell a user who waits that something happens.

    Args:
        file: is appended to.
        loggers: names of those whose warnings are for the user, and are told as they come.

    Yields:
        Tells one line on standard error.
    """
    # Of the process, not of Python: handlers of loggers hold streams of their own, and libraries in C write to neither.
    aside = [number for number in (1, 2) if _is_open(number) and not (number == 2 and os.isatty(number))]
    saved = {number: os.dup(number) for number in aside}
    console = os.dup(2) if _is_open(2) else None
    teller = _Teller(console)
    new = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for number in aside:
            os.dup2(new, number)
        for name in loggers:
            logger(name).addHandler(teller)
        yield teller.tell
    finally:
        for name in loggers:
            logger(name).removeHandler(teller)
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()  # type: ignore[union-attr]
        for number, before in saved.items():
            os.dup2(before, number)
        for number in (new, *saved.values(), *([] if console is None else [console])):
            os.close(number)


class _Teller(logging.Handler):
    """Writes lines to a file descriptor; None writes nothing."""

    def __init__(self, number: int | None):
        super().__init__(logging.WARNING)
        self._number = number

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(record.getMessage())

    def tell(self, line: str) -> None:
        # A reader that has gone, as `head` does, ends no command.
        with suppress(OSError):
            if self._number is not None:
                os.write(self._number, f"{one_line(line)}\n".encode(sys.stderr.encoding or "utf-8", "replace"))


def _is_open(number: int) -> bool:
    # Of a stream that was closed from the start, the number may be that of another file by now.
    if (sys.__stdout__, sys.__stderr__)[number - 1] is None:
        return False
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
