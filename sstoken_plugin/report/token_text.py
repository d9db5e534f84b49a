"""The text of single tokens, where a tokenizer gives text for many at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

# What decoders put in the place of bytes that are no character (yet).
REPLACEMENT = "\ufffd"
# Tokens that a piece is decoded with: enough for any character and for a tokenizer that looks back at spaces; then, for
# rows of bytes of which one that is no character spoils all.
CONTEXTS = (6, 60)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, so that all of them joined are the decoded whole.

    What several tokens make up together, as emoji and rare scripts are, is the text of the first; that of the others
    is empty.

    Args:
        tokenizer: of transformers.
        ids: token ids of one sample.
    """
    whole = decode(tokenizer, ids)
    # Where a token starts, and where its text does in the whole: no character is cut there.
    cuts = [(0, 0)]
    for end in range(1, len(ids)):
        place = _end_of_text(tokenizer, ids, whole, cuts, end)
        if place is not None:
            cuts.append((end, place))
    texts = [""] * len(ids)
    for (token, start), (_, stop) in zip(cuts, [*cuts[1:], (len(ids), len(whole))], strict=True):
        if token < len(ids):
            texts[token] = whole[start:stop]
    return texts


class LoneTokens:
    """The texts of tokens on their own, as they are in the midst of a sample.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        # Some decoders leave out the first space.
        self._before = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._head = decode(tokenizer, self._before)

    def decoded(self, token: int) -> str:
        """Return what a token adds to a text; `REPLACEMENT` stands in it where it is a part of a character."""
        both = decode(self._tokenizer, [*self._before, token])
        return both[len(self._head) :] if both.startswith(self._head) else decode(self._tokenizer, [token])

    def named(self, token: int) -> str:
        """Return the same with the bytes of a part of a character as \\xNN."""
        text = self.decoded(token)
        if REPLACEMENT not in text:
            return text
        content = _bytes_of(str(self._tokenizer.convert_ids_to_tokens([token])[0]))
        return text if content is None else content.decode("utf-8", errors="backslashreplace")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones with their names."""
    if type(tokenizer).__module__ != "transformers.tokenization_mistral_common":
        text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text
    # Beside special tokens its SentencePiece tokenizers give the pieces of the vocabulary in place of a text.
    special = set(tokenizer.all_special_ids)
    parts: list[str] = []
    for is_special, some in groupby(ids, special.__contains__):
        run = list(some)
        names = tokenizer.convert_ids_to_tokens(run) if is_special else []
        parts += names or [tokenizer.decode(run, skip_special_tokens=True)]
    return "".join(parts)


def _end_of_text(
    tokenizer: Any, ids: Sequence[int], whole: str, cuts: Sequence[tuple[int, int]], end: int
) -> int | None:
    """Return where the text of the tokens before `end` ends in the whole; None where a character goes on."""
    for context in CONTEXTS:
        token, place = next((cut for cut in reversed(cuts) if cut[0] <= end - context), cuts[0])
        text = decode(tokenizer, ids[token:end])
        # The first space of what is decoded is left out by some.
        for start in (place, place + 1) if whole[place : place + 1] == " " else (place,):
            if whole.startswith(text, start) and start + len(text) >= cuts[-1][1]:
                return start + len(text)
        if token == 0:
            break
    return None


def _bytes_of(piece: str) -> bytes | None:
    """Return the bytes that a piece of a byte-level or byte-fallback vocabulary stands for; None for others."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    try:
        return bytes(_BYTES[character] for character in piece)
    except KeyError:
        return None


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet of bytes: those that can be seen stand for themselves, the rest follow from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [value for value in range(256) if value not in seen]
    return {chr(value): value for value in seen} | {chr(256 + place): value for place, value in enumerate(rest)}


_BYTES = _byte_alphabet()
