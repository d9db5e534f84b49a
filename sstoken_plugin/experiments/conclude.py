"""What the runs of an experiment tell: sentences, the page, the file of numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sstoken_plugin.base.files import write_bytes
from sstoken_plugin.base.numbers import counted
from sstoken_plugin.base.told import tell
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.experiments.comparison import Table, deciding_measure, doubts, sentence, tables_of
from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.experiments.numbers import settings_of
from sstoken_plugin.experiments.preparation import notes_of, what_was_found
from sstoken_plugin.experiments.results import Result, make_folder, read_json, write_json
from sstoken_plugin.experiments.runs import Runs, fingerprint_of_all
from sstoken_plugin.report.drawing.document import is_written_by


@dataclass(frozen=True)
class Files:
    """What an experiment leaves.

    Attributes:
        page: file of the page.
        title: of the page.
        numbers: file of the numbers.
        as_json: makes its content.
    """

    page: Path
    title: str
    numbers: Path
    as_json: Callable[[Experiment, Sequence[Table]], Mapping[str, Any]]


def refuse_files_of_others(page: Path, numbers: Path) -> None:
    """Refuse to write over what no experiment has written.

    Raises:
        ValueError: there is such a file; one sentence with key and fix.
    """
    found = (read_json(numbers) or {}).keys()
    ours = {page: is_written_by(page), numbers: {"arms", "comparisons"} <= found or {"settings", "tables"} <= found}
    for file, is_ours in ours.items():
        # os.path, for which a folder that nobody may look into has no files: where it is made, that is told.
        if os.path.exists(file) and not is_ours:
            raise ValueError(
                f"out: {file} is there, and no experiment has written it; name another folder, or move it."
            )


def conclude(experiment: Experiment, asked: Runs, files: Files, faults: Sequence[str] = ()) -> None:
    """Tell what the comparisons of the deciding measure say, and write all that is there.

    Args:
        experiment: the experiment.
        asked: its runs.
        files: what to write.
        faults: runs that failed.

    Raises:
        ValueError: a file cannot be written, or runs failed.
    """
    # Here, since it imports what takes seconds, and whoever waits for a first line needs none of it.
    from sstoken_plugin.experiments.page import Page, render

    by_run = {run.name: run.result() for run in asked.trainings}
    results = [result for result in by_run.values() if result is not None]
    untrained = asked.untrained.result()
    tables = tables_of(experiment, results, untrained)
    for comparison in tables[0].comparisons if tables else ():
        tell(sentence(comparison, tables[0], experiment.smallest_difference))
    missing = _missing(by_run)
    others = [*_changed(experiment, asked), *_mixed([*results, *([untrained] if untrained else [])])]
    others += doubts(experiment, tables)
    for warning in (*missing, *others):
        tell(f"Warning: {warning}")
    found = what_was_found(experiment.out, fingerprint_of_all(asked.trainings))
    notes = notes_of(found)
    warnings = [note.removeprefix("Warning: ") for note in notes if note.startswith("Warning: ")]
    warnings += [*missing, *faults, *others]
    page = Page(
        title=files.title,
        tables=tables,
        smallest=experiment.smallest_difference,
        results=results,
        runs=len(asked.trainings),
        notes=[note for note in notes if not note.startswith("Warning: ")],
        warnings=warnings,
        settings=settings_of(experiment),
        what=_what(experiment, found),
    )
    make_folder(files.page.parent)
    try:
        write_bytes(render(page).encode("utf-8", "replace"), files.page)
        write_json(files.as_json(experiment, tables), files.numbers)
    except OSError as error:
        raise ValueError(
            f"out: page and numbers cannot be written to {files.page.parent} ({error.strerror}); make room there, and "
            "give the same command again: finished runs are kept."
        ) from error
    tell(f"Written: {files.page}, {files.numbers}")
    if faults:
        raise ValueError(f"{counted(len(faults), 'run')} failed, the first: {faults[0]}")


def _what(experiment: Experiment, prepared: Mapping[str, Any] | None) -> str:
    name = (deciding_measure(experiment) or "").partition("/")[0]
    asked = experiment.evaluations.get(name)
    if asked is None:
        return ""
    own = getattr(asked, "datasets", None) is None
    data = "the evaluation set of the base's own" if own else f"the data sets of evaluation {name}"
    start = "Every arm was trained from the same start on the same samples"
    if any(arm.changes for arm in experiment.arms):
        start += ", but for what its `changes` say"
    # Not said where nobody has looked, as of runs that were copied here.
    is_new = prepared is not None and not any(key.partition("/")[2] == name for key in prepared.get("shared", ()))
    return f"{start}, and measured on {data}{', which no arm trains on' if is_new else ''}."


def _missing(results: Mapping[str, Result | None]) -> list[str]:
    missing = [name for name, result in results.items() if result is None]
    if not missing:
        return []
    some = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return [f"{len(missing)} of {len(results)} runs have no result of these settings yet: {some}."]


def _changed(experiment: Experiment, asked: Runs) -> list[str]:
    """Say which files are no more what they were when the runs were listed."""
    try:
        now, before = Runs.of(experiment).files(), asked.files()
    except (OSError, ValueError) as error:
        return [f"Whether data have changed while this command went on is not known ({in_short(error)})."]
    changed = sorted(file for file in now.keys() | before.keys() if now.get(file) != before.get(file))
    if not changed:
        return []
    return [
        f"{', '.join(changed)} changed while this command went on: its results count as of what was there before, and "
        "a run that began later may have used the other; if in doubt, have the runs anew in another folder (`out:`)."
    ]


def _mixed(results: Sequence[Result]) -> list[str]:
    """Say where runs are compared that something else than arm and seed tells apart."""
    names = sorted({name for result in results for name in result.versions})
    mixed = [name for name in names if len({result.versions.get(name) for result in results}) > 1]
    data: dict[str, set[str]] = {}
    for result in results:
        for file, digest in result.settings["data"].items():
            data.setdefault(file, set()).add(str(digest))
    mixed += sorted(file for file, digests in data.items() if len(digests) > 1)
    return [f"Runs were had with different versions of: {', '.join(mixed)}."] if mixed else []
