"""The text of single tokens, where a tokenizer gives text for many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What decoders put in the place of bytes that are no character (yet).
REPLACEMENT = "\ufffd"
# Tokens that a piece is decoded with: enough for any character, and for a tokenizer that looks back at spaces.
CONTEXT = 6


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, so that all of them joined are the text of the whole.

    A character that several tokens make up, as emoji and rare scripts are, is the text of the first; that of the others
    is empty.

    Args:
        tokenizer: of transformers.
        ids: token ids of one sample.
    """
    texts: list[str] = []
    start = 0
    while start < len(ids):
        end = start + 1
        text = _piece(tokenizer, ids, start, end)
        # Bytes that never become a character stay replacements.
        while text.endswith(REPLACEMENT) and end < len(ids) and end - start < CONTEXT:
            end += 1
            longer = _piece(tokenizer, ids, start, end)
            if not longer.endswith(REPLACEMENT):
                text = longer
                break
        else:
            end = start + 1
        texts += [text, *[""] * (end - start - 1)]
        start = end
    return texts


def _piece(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> str:
    """Return what the tokens from `start` to `end` add to the text of those before them."""
    before = ids[max(start - CONTEXT, 0) : start]
    head, whole = _decode(tokenizer, before), _decode(tokenizer, [*before, *ids[start:end]])
    # Where the context itself begins inside a character, its text differs with what follows.
    return whole[len(head) :] if whole.startswith(head) else _decode(tokenizer, ids[start:end])


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text
