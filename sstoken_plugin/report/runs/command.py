"""`sstoken-report`, for runs of every trainer."""

from __future__ import annotations

import click

from sstoken_plugin.base.told import told_in_a_sentence
from sstoken_plugin.base.visible_text import one_line


@click.command(name="sstoken-report", short_help="draw a finished run's page again, or several runs on one page")
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN ...]")
@click.option(
    "--out",
    metavar="FILE",
    help="File of the page  [default: RUN/sstoken/report-redrawn.html, or ./sstoken-report.html for several runs]",
)
def report_command(runs: tuple[str, ...], out: str | None) -> None:
    """Draw the page of a finished RUN again, or one page of several.

    RUN is the output_dir of a run, its folder sstoken, one of its checkpoints, or a folder of runs. One page of several
    shows settings that differ, curves over one another, evaluation losses, and which tokens of the same samples each
    run kept; plain trainings may be among them.
    """
    # Here, so that `--help` stays quick.
    from sstoken_plugin.report.runs.draw import draw

    with told_in_a_sentence():
        file, notes = draw(runs, out)
        for note in notes:
            click.echo(one_line(f"Note: {note}"))
        click.echo(one_line(f"Written: {file}"))
