"""What has state in a checkpoint: a part registers under its name, gives its state, and takes it over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import FiniteFloat
from torch import Tensor

from sstoken_plugin.base.checked import checked
from sstoken_plugin.history.base import History
from sstoken_plugin.training.metrics import Totals
from sstoken_plugin.training.monitor import SelectionMonitor


@dataclass(frozen=True)
class Saved:
    """The state of a part.

    Attributes:
        facts: a few values of JSON's types; None for none.
        tensors: by name.
        document: values of JSON's types that may be many; None for none.
    """

    facts: Any = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    document: Any = None


class Part:
    """A part of a selection that a checkpoint holds.

    On several ranks each method is called on every rank, and the ranks go through the parts in the same order. What one
    rank cannot take over, none does.

    Attributes:
        name: of its files in the checkpoint, and of its facts among those of the other parts.
        words: what is lost without it, for users.
        is_spare: whether a checkpoint that cannot hold it is written without it.
        is_taken_over: whether a run that resumes reads it.
    """

    name: str
    words: str
    is_spare: bool = False
    is_taken_over: bool = True

    def state(self) -> Saved | None:
        """Return what `restore` needs; None for nothing."""
        raise NotImplementedError

    def mark(self, saved: Saved | None) -> float:
        """Return a number that must be the same on every rank, where ranks do together what follows from the state."""
        return 0.0

    def restore(self, saved: Saved | None) -> None:
        """Take over a state; None where the checkpoint has none. It must not wait for other ranks.

        Raises:
            ValueError: it is none that `state` gave, or of something else; the reason, for users.
        """
        raise NotImplementedError

    def begin_anew(self) -> str:
        """Begin as a new run does; return what is assumed then, in words, if a sentence of its own is needed."""
        raise NotImplementedError

    def check(self) -> str:
        """Return a sentence about a state that was taken over on every rank and is not what it should be, or ""."""
        return ""


class HistoryPart(Part):
    """The weights of a history, or the hash of one that a new run finds again.

    Args:
        kind: the value of `sstoken.history`.
        history: the history; None where no model is kept.
        model: the unwrapped model in training.
        is_writer: whether this rank writes checkpoints.
        any_rank: tells whether a flag is set on any rank.
    """

    name = "history"
    words = "the history"

    def __init__(
        self, kind: str, history: History | None, model: Any, *, is_writer: bool, any_rank: Callable[[bool], bool]
    ):
        self._kind = kind
        self._history = history
        self._model = model
        self._is_writer = is_writer
        self._any_rank = any_rank
        self._digest: str | None = None

    def state(self) -> Saved:
        """Return the kind and the hash of the history, and its weights where a new run could not make them again."""
        tensors = {}
        # Every rank puts its part of a sharded tensor in.
        for name, tensor in () if self._history is None else self._history.tensors(self._model):
            if self._is_writer:
                tensors[name] = tensor.cpu()
        digest = None if self._history is None else self._history.digest(self._model)
        return Saved({"kind": self._kind, "digest": digest}, tensors)

    def restore(self, saved: Saved | None) -> None:
        """Take over the weights, and remember the hash."""
        if self._history is None:
            return
        saved = saved or Saved()
        facts = checked(saved.facts or {}, dict[str, str | None])
        if facts.get("kind") not in (None, self._kind):
            raise ValueError(f"it was made with sstoken.history: {facts['kind']}")
        self._history.restore(dict(saved.tensors), self._model)
        self._digest = facts.get("digest")

    def begin_anew(self) -> str:
        """Begin at the weights as they are, if the history follows them at all."""
        if self._history is None or not self._history.changes:
            return "the history is the one that a new run would have"
        self._history.restart(self._model)
        return "the history begins anew at the weights of the checkpoint"

    def check(self) -> str:
        """Compare the hash with that of the history which this run has found."""
        own = None if self._history is None else self._history.digest(self._model)
        if self._any_rank(self._history is not None and self._digest not in (None, own)):
            return (
                "ssToken: the weights before training are not those that the resumed run had; REL compares with the "
                "base model as it is now."
            )
        return ""


class TotalsPart(Part):
    """Counts since the last log line.

    Args:
        totals: the counts.
        total: returns those of all ranks together.
        device: of the counts.
        is_first: whether this is the first rank, which goes on with the counts of all.
    """

    name = "totals"
    words = "the metrics since the last log line"

    def __init__(self, totals: Totals, total: Callable[[], dict[str, float]], device: Any, *, is_first: bool):
        self._totals = totals
        self._total = total
        self._device = device
        self._is_first = is_first

    def state(self) -> Saved:
        """Return the counts of all ranks."""
        return Saved(self._total())

    def restore(self, saved: Saved | None) -> None:
        """Go on from the counts, on the first rank."""
        if saved is None:
            return
        found = checked(saved.facts, dict[str, FiniteFloat])
        if self._is_first:
            self._totals.restore(found, self._device)

    def begin_anew(self) -> str:
        """Begin at zero."""
        self._totals.clear()
        return ""


class MonitorPart(Part):
    """What is watched for warnings.

    Args:
        monitor: the watch.
    """

    name = "monitor"
    words = "what is watched for warnings"

    def __init__(self, monitor: SelectionMonitor):
        self._monitor = monitor

    def state(self) -> Saved:
        """Return what was seen so far."""
        return Saved(self._monitor.state())

    def restore(self, saved: Saved | None) -> None:
        """Go on watching."""
        if saved is not None:
            self._monitor.restore(checked(saved.facts, dict[str, Any]))

    def begin_anew(self) -> str:
        """Forget what was seen."""
        self._monitor.clear()
        return ""


class WarningsPart(Part):
    """Every warning raised about the selection.

    Args:
        warnings: those so far; those of the checkpoint are put before them.
    """

    name = "warnings"
    words = "earlier warnings"

    def __init__(self, warnings: list[str]):
        self._warnings = warnings

    def state(self) -> Saved:
        """Return the warnings."""
        return Saved(list(self._warnings))

    def restore(self, saved: Saved | None) -> None:
        """Put those of the checkpoint first."""
        if saved is not None:
            self._warnings[:0] = checked(saved.facts, list[str])

    def begin_anew(self) -> str:
        """Keep those of this process."""
        return ""
