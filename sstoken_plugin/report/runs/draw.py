"""Draws finished runs: one again, or several on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sstoken_plugin.base.files import expand, write_bytes
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.report.drawing.document import is_written_by
from sstoken_plugin.report.render import render
from sstoken_plugin.report.runs.finished import FOLDER, FinishedRun, find_runs
from sstoken_plugin.report.runs.page import GENERATOR, MOST_RUNS, render_runs

# A run's own page, report.html, is written by the run alone.
REDRAWN, SEVERAL = "report-redrawn.html", "sstoken-report.html"
_SUFFIXES = (".html", ".htm")


def draw(given: Sequence[str], out: str | None) -> tuple[Path, list[str]]:
    """Write the page of one run again, or one page of several.

    Args:
        given: see `find_runs`.
        out: file of the page; None for report-redrawn.html in the folder `sstoken` of the run, or for several runs
            sstoken-report.html in the current folder.

    Returns:
        The file, and sentences about what is not on the page.

    Raises:
        ValueError: there is nothing to draw, or no place for it; one sentence with the fix.
    """
    # Before anything is read, which may take a while.
    asked = None if out is None else _asked(out)
    runs, faults = find_runs(given)
    if len(runs) > MOST_RUNS:
        raise ValueError(f"RUN: there are {len(runs)}, and one page shows {MOST_RUNS} at most; name fewer.")
    if len(runs) == 1:
        page, file = _redrawn(runs[0]), asked or runs[0].folder / FOLDER / REDRAWN
    else:
        page, file = render_runs(runs, faults), asked or Path(SEVERAL)
        if asked is None and file.exists() and not is_written_by(file, GENERATOR):
            raise ValueError(f"--out: {file} is there and is no page of this command; name another file.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(page.encode("utf-8", "replace"), file)
    except OSError as error:
        raise ValueError(f"--out: {file} cannot be written ({in_short(error)}); name another file.") from error
    notes = [*faults, *(run.note for run in runs if run.note)]
    if len(runs) == 1 and runs[0].is_checkpoint:
        notes.append("a checkpoint keeps no tables, so that this page has none.")
    return file, notes


def _asked(out: str) -> Path:
    file = expand(out)
    try:
        is_folder = bool(out) and file.is_dir()
    except OSError as error:
        raise ValueError(f"--out: {file} cannot be written ({in_short(error)}); name another file.") from error
    if is_folder:
        raise ValueError(f"--out: {out} is a folder; name a file in it, such as {file / SEVERAL}.")
    if file.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--out: {out or 'nothing'} is no name of a page; let it end in .html.")
    return file


def _redrawn(run: FinishedRun) -> str:
    if run.report is not None:
        return render(run.report)
    if run.selects:
        raise ValueError(
            f"RUN: {run.folder} has no data of a page: it ran with report: false, or with an older release. "
            "Name a second run, and one page shows their curves."
        )
    raise ValueError(
        f"RUN: {run.folder} is a training without a selection, so that there is nothing to show of it alone; name a "
        "second run to compare it with."
    )
