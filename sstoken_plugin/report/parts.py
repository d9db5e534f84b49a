"""What a checkpoint holds for the page."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from pydantic import FiniteFloat

from sstoken_plugin.report.breakdown import KeptCounts
from sstoken_plugin.report.content import Moment, is_record
from sstoken_plugin.report.trajectory import Trajectory
from sstoken_plugin.training.parts import Part, Saved, checked
from sstoken_plugin.training.session import Session


class MomentsPart(Part):
    """The samples that were scored along the run.

    Args:
        trajectory: what scores them.
    """

    name = "moments"
    words = "the page's samples"
    is_spare = True

    def __init__(self, trajectory: Trajectory):
        self._trajectory = trajectory

    def state(self) -> Saved:
        """Return the moments so far."""
        return Saved(document=[vars(moment) for moment in self._trajectory.moments])

    def mark(self, saved: Saved | None) -> float:
        """Return what tells whether ranks would score alike: with other samples they would wait for each other."""
        try:
            return samples_mark(moments_of(saved))
        except ValueError:
            return -1.0

    def restore(self, saved: Saved | None) -> None:
        """Go on after the moments of the checkpoint."""
        self._trajectory.moments = moments_of(saved)

    def begin_anew(self) -> str:
        """Begin with no moment."""
        self._trajectory.restart()
        return ""


class CountsPart(Part):
    """Counts of what was kept over the data.

    Args:
        counts: what counts.
        session: of the trainer.
    """

    name = "kept"
    words = "the page's tables"
    is_spare = True

    def __init__(self, counts: KeptCounts, session: Session):
        self._counts = counts
        self._session = session

    def state(self) -> Saved | None:
        """Return the counts of all ranks; None where counting has failed on any."""
        counts = total_counts(self._counts, self._session)
        return None if counts is None else Saved({"rule": self._counts.rule}, {"counts": counts})

    def restore(self, saved: Saved | None) -> None:
        """Go on from the counts, on the first rank."""
        if saved is None:
            return
        rule = checked(saved.facts, dict[str, str | None]).get("rule")
        if "counts" not in saved.tensors:
            raise ValueError("there are none")
        counts = saved.tensors["counts"]
        self._counts.restore(rule, counts if self._session.is_first_rank else torch.zeros_like(counts))

    def begin_anew(self) -> str:
        """Begin at zero."""
        self._counts.clear()
        return ""


def total_counts(counts: KeptCounts, session: Session) -> torch.Tensor | None:
    """Return the counts of all ranks together, int64 [2, C] on the CPU; every rank must call this.

    None, on every rank, where counting has failed on any.
    """
    if session.any_rank(counts.failed):
        return None
    return session.sum_over_ranks(counts.counts.double()).long().cpu()


def moments_of(saved: Saved | None) -> list[Moment]:
    """Read moments from a checkpoint; none where it has none.

    Raises:
        ValueError: they are none, or have different samples.
    """
    if saved is None or saved.document is None:
        return []
    moments = [_moment(entry) for entry in checked(saved.document, list[dict[str, Any]])]
    if len({tuple(len(record["input_ids"]) for record in moment.records) for moment in moments}) > 1:
        raise ValueError("its moments have different samples")
    return moments


def _moment(entry: Mapping[str, Any]) -> Moment:
    # Others are of a release to come.
    own = [part.name for part in fields(Moment)]
    if missing := [name for name in own if name not in entry]:
        raise ValueError(f"a moment has no {missing[0]}")
    moment = Moment(**{name: entry[name] for name in own})
    checked([moment.label, moment.rule], list[str])
    checked([moment.gamma, moment.ratio], list[FiniteFloat])
    if not all(map(is_record, checked(moment.records, list[dict[str, Any]]))):
        raise ValueError("a record is none")
    return moment


def samples_mark(moments: Sequence[Moment]) -> int:
    """Return a number, exact as a float64, that tells whether ranks would score alike what moments hold."""
    records = moments[0].records if moments else []
    shape = [(record["sample"], record["input_ids"], [loss is None for loss in record["history_nll"]])
             for record in records]  # fmt: skip
    return zlib.crc32(json.dumps(shape).encode())
