"""The examples of the docs as they stand there, in a folder where they find what they name."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from material import ROOT

from demo.data import main as write_data


def block(heading: str, language: str, page: str = "trainers.md") -> str:
    """Return the first code block of a language in a section of a page of docs/."""
    text = (ROOT / "docs" / page).read_text()
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    return section.split(f"```{language}\n")[1].split("```")[0]


def prepare(folder: Path, model: Path, data: str) -> None:
    """Lay out what examples name: the model of the demo, for which a small one stands in, and data of the demo."""
    models = folder / ".cache" / "models"
    models.mkdir(parents=True)
    (models / "smollm2-135m-instruct").symlink_to(model)
    # A copy: from a link `..` leads to this repository, and to data of an earlier demo.
    shutil.copytree(ROOT / "example_configs", folder / "example_configs")
    write_data(folder / data)


def python() -> str:
    """Name this interpreter as `run_command` finds it."""
    return Path(sys.executable).name
