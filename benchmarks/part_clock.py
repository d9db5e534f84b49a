"""The share that parts of the plugin take of a step; needs torch and this repository, no Axolotl."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from harness import WARMUP_STEPS, spread

from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.modes import replaced
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.selection import scores as selection
from sstoken_plugin.selection.turns import Turns

# Layout, turns, scores and selection, reading cached losses; what counts for the metrics is the caller's to name.
PARTS: list[tuple[Any, str, str]] = [
    (PromptAttention, "_observe", "probe"),
    (Phase, "layout", "bookkeeping"),
    (Turns, "of", "bookkeeping"),
    (HistoryLosses, "of", "bookkeeping"),
    (TokenSelection, "score", "bookkeeping"),
    (selection, "keep_top", "bookkeeping"),
]


class PartClock:
    """Adds up the time of parts of a step, or of a run.

    Args:
        timed: returns the seconds of a call. Where it waits for a device, the sum is a little too long.
        parts: what they are called.

    Attributes:
        spent: the seconds of each part so far.
    """

    def __init__(self, timed: Callable[[Callable[[], Any]], float], parts: Iterable[str] = ("probe", "bookkeeping")):
        self.spent = dict.fromkeys(parts, 0.0)
        self._timed = timed
        self._running = False

    @contextmanager
    def watch(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Time the calls of a function inside the block, but for those inside another part."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running = True
            found = []
            try:
                self.spent[part] += self._timed(lambda: found.append(function(*args, **kwargs)))
            finally:
                self._running = False
            return found[0]

        with replaced(owner, name, timed):
            yield


def part_shares(
    steps: Iterable[float], timed: Callable[[Callable[[], Any]], float], counting: list[tuple[Any, str, str]]
) -> dict[str, dict[str, float]]:
    """Return the share of each part in the time of a step, median and range over the steps after the warm-up.

    Args:
        steps: runs a step and gives its seconds, each time it is asked for the next.
        timed: see `PartClock`.
        counting: functions to be watched beside `PARTS`: (owner, name, part).
    """
    clock = PartClock(timed)
    found: dict[str, list[float]] = {part: [] for part in clock.spent}
    with ExitStack() as stack:
        for watched in PARTS + counting:
            stack.enter_context(clock.watch(*watched))
        for number, seconds in enumerate(steps):
            for part, taken in clock.spent.items():
                if number >= WARMUP_STEPS:
                    found[part].append(taken / seconds)
                clock.spent[part] = 0.0
    return {part: spread(shares) for part, shares in found.items()}
