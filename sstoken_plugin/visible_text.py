"""Text that nobody vetted, for terminals, logs and trackers: what can't be seen is shown, and nothing in it acts."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """Return a text whose control, format and direction characters are replaced by marks; line breaks stay."""
    return "".join(character if character in "\n\t" else _visible(character) for character in text)


def one_line(text: str) -> str:
    """Return a text as `visible` does, on one line."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    # Joiners inside emoji and scripts that need them are format characters too, and harmless.
    if character in "\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"[U+{ord(character):04X}]"
