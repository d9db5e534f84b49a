"""`python -m sstoken_plugin sstoken-inspect CONFIG`: the commands where Axolotl's own command line takes none.

Before 0.18 it has no entry-point group for them. `sstoken-report` needs no Axolotl.
"""

from __future__ import annotations

import click

from sstoken_plugin.axolotl.cli import inspect_command, score_command
from sstoken_plugin.experiments.compare import compare_command
from sstoken_plugin.report.runs.command import report_command

if __name__ == "__main__":
    commands = [inspect_command, score_command, compare_command, report_command]
    click.Group(commands=commands)(prog_name="python -m sstoken_plugin")
