"""Text that nobody vetted, for terminals, logs and trackers: what can't be seen is shown, and nothing in it acts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

# Characters of one line of text, and of what a library says in one, which may go on for pages.
MAX_LINE = 1000
MAX_ERROR = 300


def visible(text: str) -> str:
    """Return a text whose control, format and direction characters are replaced by marks; line breaks stay."""
    return "".join(character if character in "\n\t" else _visible(character) for character in text)


def one_line(text: str) -> str:
    """Return a text as `visible` does, on one line."""
    return "".join(map(_visible, text))


def cut(text: str, limit: int = MAX_LINE) -> str:
    """Return a text of bounded length; what is missing is said."""
    return text if len(text) <= limit else f"{text[:limit]}[... {len(text) - limit} more characters]"


def in_short(error: Exception) -> str:
    """Return what an error of a library says, in part of a line, with its kind if it is not for users."""
    words = cut(one_line(" ".join(str(error).split())), MAX_ERROR).removesuffix(".")
    if isinstance(error, ValueError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@contextmanager
def told_on_one_line() -> Iterator[None]:
    """Keep a sentence that is raised inside the block on one line, whatever names stand in it."""
    try:
        yield
    except ValueError as error:
        # Not its subclasses, whose arguments are others.
        if type(error) is not ValueError or one_line(str(error)) == str(error):
            raise
        raise ValueError(one_line(str(error))) from error.__cause__


def _visible(character: str) -> str:
    # Joiners inside emoji and scripts that need them are format characters too, and harmless.
    if character in "\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"[U+{ord(character):04X}]"
