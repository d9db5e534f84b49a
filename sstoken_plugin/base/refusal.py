"""A setting of a framework that cannot stand beside token selection, as one sentence with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

# Why engines that split weights are refused, whatever framework starts them.
FSDP1 = "flattens weights, so that neither an adapter nor a layer can be reached"
ZERO_3 = "needs every weight of a model, which ZeRO stage 3 does not give"
ZERO_3_WAY_OUT = "use stage 2 or FSDP2, or leave history_cache out and set history: initial, or another that is no path"


class Refusal(NamedTuple):
    """A key that is refused.

    Attributes:
        key: the framework's name of it.
        reason: goes on where the sentence has named the key.
        case: when it is refused, if not always; for lists in the docs.
        way_out: what to do, if not only to remove the key.
    """

    key: str
    reason: str
    case: str = ""
    way_out: str = ""

    def refuse(self, value: Any = None, without: str = "") -> NoReturn:
        """Stop the run.

        Args:
            value: what the key is set to; None where the key says it, or it is long.
            without: how to train without selection; "" where the way out has it, or is a better one.

        Raises:
            ValueError: always.
        """
        shown = str(value).lower() if isinstance(value, bool) else value
        set_to = "" if value is None else f": {shown}"
        way_out = self.way_out or f"remove `{self.key}`"
        raise ValueError(f"{self.key}{set_to} {self.reason}; {way_out}{without and f', or {without}'}.")


def asked_for(entries: Iterable[str], value_of: Callable[[str], Any]) -> list[str]:
    """Return those entries that a run asks for: `key`, set to anything that is true, or `key: value`, set to that.

    Args:
        entries: of a list such as `UNTESTED`.
        value_of: returns what a key is set to.
    """
    named = ((entry, *entry.partition(": ")) for entry in entries)
    return [entry for entry, key, _, value in named if (value_of(key) == value if value else value_of(key))]
