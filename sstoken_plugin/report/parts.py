"""What a checkpoint holds for the page."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sstoken_plugin.base.attempt import attempt
from sstoken_plugin.base.checked import checked
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.engine.run import Run
from sstoken_plugin.report.assembly import facts_of, report_of
from sstoken_plugin.report.breakdown import KeptCounts
from sstoken_plugin.report.content import Moment
from sstoken_plugin.report.page_data import UNREADABLE, PageData, as_json, moments_from, page_data, training_of
from sstoken_plugin.report.trajectory import Trajectory
from sstoken_plugin.training import checkpoint
from sstoken_plugin.training.parts import Part, Saved, WarningsPart
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
    return [] if saved is None or saved.document is None else moments_from(saved.document)


class PagePart(Part):
    """What a checkpoint needs for its page beside the moments and the warnings, which are parts of their own.

    Args:
        trainer: whose settings are shown.
        session: of the trainer.
        run: the facts of its run.
        trajectory: has the moments.
    """

    name = "page"
    words = "the page's settings"
    is_spare = True
    # A run that goes on has settings of its own.
    is_taken_over = False

    def __init__(self, trainer: Any, session: Session, run: Run, trajectory: Trajectory):
        self._trainer = trainer
        self._run = run
        self._session = session
        self._trajectory = trajectory

    def state(self) -> Saved | None:
        """Return the page but for its moments, its log and its tables; None where that fails."""
        return attempt("a checkpoint does not hold its page", self._state)

    def _state(self) -> Saved:
        session, trainer = self._session, self._trainer
        assert session.selection is not None
        facts = facts_of(self._run, session.model, session.samples, steps=trainer.state.global_step)
        report = report_of(session.selection, session.tokenizer, self._trajectory.moments, (), facts)
        data = PageData(replace(report, moments=()), training_of(self._trainer))
        return Saved(document=json.loads(as_json(data)))

    def begin_anew(self) -> str:
        """Begin with nothing, as always."""
        return ""


def read_checkpoint(folder: Path, log: list[dict[str, Any]]) -> PageData | None:
    """Read the data of a page from a checkpoint; None where it holds none.

    Args:
        folder: of the checkpoint.
        log: of the run up to the checkpoint.

    Raises:
        ValueError: they are damaged, or of another checkpoint; the reason, for users.
    """
    names = (PagePart.name, MomentsPart.name)
    found = checkpoint.read(folder, names)
    if found is None:
        return None
    # It has the warnings, of which a page would say that there were none.
    if found.fault:
        raise ValueError(found.fault)
    for name in names:
        if name in found.lost:
            raise ValueError(found.lost[name])
    page, moments, warnings = (found.parts.get(name) for name in (*names, WarningsPart.name))
    if page is None or page.document is None:
        return None
    try:
        data = page_data(page.document)
        report = replace(
            data.report,
            moments=moments_of(moments),
            log=log,
            warnings=[] if warnings is None else checked(warnings.facts, list[str]),
        )
    except UNREADABLE as error:
        raise ValueError(in_short(error)) from error
    return replace(data, report=report)


def samples_mark(moments: Sequence[Moment]) -> int:
    """Return a number, exact as a float64, that tells whether ranks would score alike what moments hold."""
    records = moments[0].records if moments else []
    shape = [(record["sample"], record["input_ids"], [loss is None for loss in record["history_nll"]])
             for record in records]  # fmt: skip
    return zlib.crc32(json.dumps(shape).encode())
