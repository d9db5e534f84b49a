"""An experiment from its settings to its page: what both commands do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.base.files import write_bytes
from sstoken_plugin.base.visible_text import in_short, one_line
from sstoken_plugin.experiments.comparison import Table, deciding_measure, doubts, sentence, tables_of
from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.experiments.preparation import what_was_found
from sstoken_plugin.experiments.processes import Server, prepared
from sstoken_plugin.experiments.results import Result, read_json, write_json
from sstoken_plugin.experiments.runs import Run, Runs, fingerprint_of_all, first_of_arms, part_of, plain
from sstoken_plugin.experiments.schedule import Durations, announcement, conduct
from sstoken_plugin.report.drawing.document import is_written_by


def tell(line: str) -> None:
    """Show a line."""
    click.echo(one_line(line))


def have(experiment: Experiment, asked: Runs, part: str | None = None) -> list[str]:
    """Have the runs of an experiment that have no result yet.

    Args:
        experiment: the experiment.
        asked: its runs.
        part: "K/N", see `part_of`.

    Returns:
        One sentence for each run that failed.

    Raises:
        ValueError: it cannot be run as it is; one sentence with key and fix.
    """
    runs, untrained = asked.trainings, asked.untrained
    own = part_of(runs, part)
    _refuse_arms(runs)
    make_folder(experiment.out)
    asked.refuse_other_settings()
    durations = Durations()
    for run in asked:
        if (result := run.result()) is not None:
            durations.add(run, result.seconds)
    left = [run for run in own if run.result() is None]
    if len(left) < len(own):
        tell(f"{len(own) - len(left)} of {len(own)} runs have been had before, and are not had again.")
    # Of several machines the one that begins measures it.
    if own[:1] == runs[:1] and untrained.result() is None:
        own, left = [untrained, *own], [untrained, *left]
    if not left:
        return []
    tell("Looking at settings and data, and how long a run takes ...")
    with Server() as server:
        found = prepared(server, experiment, runs, measure=not durations.seen)
        for line in notes_of(found):
            tell(line)
        durations.expect(found)
        tell(announcement(left, durations, found))
        return conduct(server, experiment, own, durations, tell)


def _refuse_arms(runs: Sequence[Run]) -> None:
    """Refuse an arm that cannot be trained, or is trained as another one is."""
    seen: dict[str, str] = {}
    for run in first_of_arms(runs):
        try:
            axolotl.check(run.settings["train"])
        except ValueError as error:
            raise ValueError(f"arms.{run.arm.name}: {error}") from error
        other = seen.setdefault(run.fingerprint_with_defaults, run.arm.name)
        if other != run.arm.name:
            raise ValueError(
                f"arms: {other} and {run.arm.name} are one and the same training, which no run can tell apart; change "
                "one of them, or remove it."
            )


def make_folder(out: Path) -> None:
    """Make the folder of the results where there is none.

    Raises:
        ValueError: that, or a file in it, cannot be had; one sentence with key and fix.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(
            f"out: {out} cannot be made, or not written to ({error.strerror}); name another folder."
        ) from error


def refuse_files_of_others(page: Path, numbers: Path) -> None:
    """Refuse to write over what no experiment has written.

    Raises:
        ValueError: there is such a file; one sentence with key and fix.
    """
    found = read_json(numbers) or {}
    ours = {page: is_written_by(page), numbers: {"comparisons", "tables"} & found.keys()}
    for file, is_ours in ours.items():
        if file.exists() and not is_ours:
            raise ValueError(
                f"out: {file} is there, and no experiment has written it; name another folder, or move it."
            )


def notes_of(found: Mapping[str, Any] | None) -> list[str]:
    """Return what is to be known of the data, one sentence each, see `prepare`."""
    if found is None:
        return []
    samples, held_out, shared = (found.get(key, {}) for key in ("samples", "held_out", "shared"))
    sizes = ", ".join(f"{count} for {name}" for name, count in held_out.items())
    counts = sorted(set(samples.values()))
    trained = str(counts[0]) if len(counts) == 1 else ", ".join(f"{arm}: {count}" for arm, count in samples.items())
    told = [f"Samples to train on: {trained}. Held out: {sizes or 'none'}."]
    worst: dict[str, int] = {}
    for key, count in shared.items():
        evaluation = key.partition("/")[2]
        worst[evaluation] = max(count, worst.get(evaluation, 0))
    return told + [
        f"Warning: {count} of the {held_out.get(name)} samples of evaluation {name} are, token for token, in the "
        "training data too: its numbers say less of new data; take them out of one of the two."
        for name, count in worst.items()
    ]


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
        raise ValueError(f"{len(faults)} {'run' if len(faults) == 1 else 'runs'} failed, the first: {faults[0]}")


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as its YAML would have it, but for what speaks to others: pages are shown around."""
    found = {
        "base": axolotl.that_can_be_shown(experiment.base),
        "arms": {
            arm.name: {"sstoken": arm.sstoken, "changes": axolotl.that_can_be_shown(arm.changes)}
            for arm in experiment.arms
        },
        "seeds": list(experiment.seeds),
        "evaluations": {name: asked.model_dump() for name, asked in experiment.evaluations.items()},
        "against": list(experiment.against),
        "smallest_difference": experiment.smallest_difference,
    }
    return plain(found)


def as_json(experiment: Experiment, tables: Sequence[Table]) -> dict[str, Any]:
    """Return all numbers of the tables."""
    return {
        "settings": settings_of(experiment),
        "tables": [
            {
                "measure": table.name, "words": table.words, "better": table.better, "untrained": table.untrained,
                "arms": {arm: {"seeds": list(table.seeds[arm]), "values": list(table.values[arm]), **asdict(mean)}
                         for arm, mean in table.means.items()},
                "comparisons": comparisons_json(table),
            }
            for table in tables
        ],
    }  # fmt: skip


def comparisons_json(table: Table) -> list[dict[str, Any]]:
    """Return the comparisons of a table."""
    return [
        {
            "arm": each.arm,
            "against": each.against,
            "difference": each.difference.mean,
            "low": each.difference.low,
            "high": each.difference.high,
            "verdict": each.verdict,
            "seeds": each.difference.count,
            "comparisons_together": each.family,
            "low_alone": each.alone.low,
            "high_alone": each.alone.high,
            "seeds_to_tell": each.to_tell,
            "seeds_to_tell_smallest": each.to_tell_smallest,
        }
        for each in table.comparisons
    ]


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
    except OSError as error:
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
