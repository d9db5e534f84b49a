"""The page of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import ascii_uppercase

from sstoken_plugin.base.numbers import counted, percent
from sstoken_plugin.report.drawing.chart import COLOURS, DASHES, key
from sstoken_plugin.report.drawing.document import document, escaped, html_table
from sstoken_plugin.report.fit import last_step
from sstoken_plugin.report.runs.curves import charts, evaluations, kept_share
from sstoken_plugin.report.runs.finished import FinishedRun
from sstoken_plugin.report.runs.samples import side_by_side, tokenizers_differ
from sstoken_plugin.report.runs.settings import UNKNOWN, Row, rows_of

# What can be told apart in a chart.
MOST_RUNS = COLOURS * DASHES
# By which a page of ours is known.
GENERATOR = "axolotl sstoken-report"
_CHANCE = (
    "Runs with one seed each cannot tell a difference from chance: another seed moves an evaluation loss too. `axolotl "
    "sstoken-compare` trains each with several seeds, and says whether a difference is more than that."
)


def render_runs(runs: Sequence[FinishedRun], faults: Sequence[str] = ()) -> str:
    """Return the page of two runs or more, `MOST_RUNS` at most: one HTML document without a script.

    Args:
        runs: the first is the one that others are compared with.
        faults: sentences on runs that are not here.
    """
    letters = ascii_uppercase[: len(runs)]
    main, more = charts(runs, letters)
    differ, same = rows_of(runs)
    losses = evaluations(runs, letters)
    heads = ["setting", *(f"{letter} {run.name}" for letter, run in zip(letters, runs, strict=True))]
    others = f'<details><summary>Other metrics</summary><div class="charts">{"".join(more)}</div></details>'
    sections = {
        "runs": ("Runs", _overview(runs, letters)),
        "evaluation": (
            "Evaluation losses",
            f"<p>{escaped(_CHANCE)}</p>{losses}"
            '<p class="note">In nats a token, less is better. They compare if the runs were evaluated on the same '
            "samples.</p>"
            if losses
            else "<p>No run has logged an evaluation loss: set `val_set_size` or `test_datasets` in its YAML.</p>",
        ),
        "differences": (
            "Settings that differ",
            html_table(heads, _lines(differ)) if differ else "<p>None that is known.</p>",
        ),
        "curves": (
            "Curves",
            f'<p class="note">By optimizer step; a letter at the end of each curve names its run.</p>'
            f'<div class="charts">{"".join(main)}</div>{others if more else ""}'
            if main or more
            else "<p>No run has logged a number at two steps.</p>",
        ),
        "samples": ("The same samples side by side", side_by_side(runs, letters)),
        "same": (
            "Settings that do not differ",
            f"<details><summary>{counted(len(same), 'setting')}</summary>{html_table(heads, _lines(same))}</details>",
        ),
    }
    links = "".join(f'<a href="#{name}">{escaped(title)}</a>' for name, (title, _) in sections.items())
    warnings = "".join(f'<p class="warning">{escaped(each)}</p>' for each in _warnings(runs, faults))
    head = f'<p>{counted(len(runs), "run")}.</p>{warnings}<nav aria-label="Sections">{links}</nav>'
    body = "".join(
        f'<section id="{name}"><h2>{escaped(title)}</h2>{content}</section>'
        for name, (title, content) in sections.items()
    )
    return document("ssToken: runs side by side", head, body, _style(), GENERATOR)


def _warnings(runs: Sequence[FinishedRun], faults: Sequence[str]) -> list[str]:
    found = [*faults, *(run.note for run in runs if run.note)]
    found += [f"{run.name}: {warning}" for run in runs if run.report is not None for warning in run.report.warnings]
    if tokenizers_differ(runs):
        found.append("The tokenizers of these runs differ, so that their losses, which are per token, do not compare.")
    return found


def _overview(runs: Sequence[FinishedRun], letters: str) -> str:
    items = "".join(
        f"<li>{key(place)} <b>{letters[place]}</b> {escaped(run.name)}: {escaped(_sentence(run))}</li>"
        for place, run in enumerate(runs)
    )
    return f'<ul class="runs">{items}</ul>'


def _sentence(run: FinishedRun) -> str:
    step, share = last_step(run.log), kept_share(run)
    facts = [
        _trained_on(run, share),
        "no step logged" if step is None else counted(step, "step"),
        f"model {run.settings.get('base_model') or UNKNOWN}",
        f"in {run.folder}",
    ]
    return f"{', '.join(facts)}."


def _trained_on(run: FinishedRun, share: float | None) -> str:
    if not run.selects:
        return "plain training, without a selection"
    return (
        "trained on selected tokens"
        if share is None
        else f"trained on {percent(share, 1, space=' ')} of its response tokens"
    )


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    return [[name, *values] for name, values in rows]


@cache
def _style() -> str:
    return (files("sstoken_plugin.report.runs") / "runs.css").read_text(encoding="utf-8")
