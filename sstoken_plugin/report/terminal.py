"""A coloured view of scored samples for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sstoken_plugin.base.numbers import counted, percent
from sstoken_plugin.base.visible_text import visible
from sstoken_plugin.report.content import Record

MOST_TOKENS = 300
# Around a token where there are no colours.
KEPT, DROPPED = "[]", "{}"
# Of the 256 colours that every terminal knows, from a low score to a high one, with black letters on them.
SHADES = (194, 157, 120, 83, 46)
# Codes of ECMA-48, which need no library.
BLACK, BOLD, DIM, STRUCK_OUT = "38;5;16", "1", "2", "9"


def legend(*, colours: bool = True) -> str:
    """Explain the colours, or what stands for them."""
    if not colours:
        return f"kept tokens stand between {KEPT[0]} and {KEPT[1]}, dropped ones between {DROPPED[0]} and {DROPPED[1]}."
    shades = "".join(_styled(" ", _on(shade)) for shade in SHADES)
    return (
        f"{_styled('kept', BLACK, _on(SHADES[2]))} tokens are shaded by score ({shades}), "
        f"{_styled('dropped', DIM, STRUCK_OUT)} ones are struck out, the rest is prompt."
    )


def total(records: Sequence[Record]) -> str:
    """Return how much of the samples is kept, in words."""
    response = sum(sum(record["response"]) for record in records)
    kept = sum(sum(record["selected"]) for record in records)
    return f"{counted(len(records), 'sample')}: {kept:,} of {counted(response, 'response token')} kept."


def view(record: Record, *, colours: bool = True) -> Iterator[str]:
    """Yield the lines of a sample.

    Args:
        record: see `inspection.inspect_samples`.
        colours: whether the terminal shows them; without, signs tell kept tokens from dropped ones.
    """
    response, kept = sum(record["response"]), sum(record["selected"])
    head = f"sample {record['sample']}: {kept:,} of {counted(response, 'response token')} kept"
    yield _styled(head, BOLD) if colours else head
    scores = [score for score in record["score"] if score is not None]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    places = _window(record["response"])
    parts = []
    for place in places:
        text = visible(record["tokens"][place])
        if not record["response"][place]:
            parts.append(text)
        elif record["selected"][place]:
            score = record["score"][place]
            share = 0.0 if score is None or high == low else (score - low) / (high - low)
            shade = SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]
            parts.append(_styled(text, BLACK, _on(shade)) if colours else KEPT[0] + text + KEPT[1])
        elif not colours:
            parts.append(DROPPED[0] + text + DROPPED[1])
        else:
            parts.append(_styled(text, DIM, STRUCK_OUT))
    if places.start:
        yield f"[{counted(places.start, 'token')} before]"
    yield "".join(parts)
    left = len(record["tokens"]) - places.stop
    if left:
        yield f"[{counted(left, 'token')} more]"


def agreement(first: Sequence[Record], second: Sequence[Record]) -> str:
    """Return how far two selections of the same samples agree, in words."""
    both = either = changed = 0
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one["selected"], other["selected"], strict=True):
            both += a and b
            either += a or b
            changed += a != b
    return (
        f"Of the tokens that either keeps both keep {percent(both / max(either, 1))} ({both:,} of {either:,}); "
        f"{counted(changed, 'token')} {'is' if changed == 1 else 'are'} kept by one alone."
    )


def _window(response: Sequence[bool]) -> range:
    """Return the places to show: a long prompt is cut at its start, a long response at its end."""
    first = next((place for place, is_response in enumerate(response) if is_response), 0)
    start = max(0, first - MOST_TOKENS // 3) if len(response) > MOST_TOKENS else 0
    return range(start, min(start + MOST_TOKENS, len(response)))


def _on(colour: int) -> str:
    return f"48;5;{colour}"


def _styled(text: str, *codes: str) -> str:
    """Style a text line by line: a colour that goes on over a line break fills the next line in some terminals."""
    start = "".join(f"\x1b[{code}m" for code in codes)
    return "\n".join(f"{start}{line}\x1b[0m" for line in text.replace("\n", "⏎\n").split("\n"))
