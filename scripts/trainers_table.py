"""Print the table of trainers for docs/support.md: `python scripts/trainers_table.py trl-1.16.0 ...`.

Each name is that of an environment in .cache and of the results beside it, as scripts/test_trainers.sh leaves them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from constraints import build_wheel, changes  # noqa: E402

PACKAGES = ("torch", "transformers", "peft", "accelerate", "pydantic", "numpy")
TWO_RANKS = "test_two_ranks_train_as_one_that_accumulates"


def main(names: list[str]) -> None:
    """Print the table.

    Args:
        names: trainer and release, with a dash between.
    """
    print("|", " | ".join(("trainer", "Python", *PACKAGES, "tests", "two ranks", "the wheel changes")), "|")
    print("|", " | ".join(["---"] * (len(PACKAGES) + 5)), "|")
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        for name in names:
            python = ROOT / ".cache" / name / "bin" / "python"
            changed = ", ".join(changes(str(python), wheel)) or "nothing"
            row = [" ".join(name.rsplit("-", 1)), *versions(python), *results(ROOT / ".cache" / f"{name}.xml"), changed]
            print("|", " | ".join(row), "|")


def versions(python: Path) -> list[str]:
    """Return the versions of Python and of the packages in an environment."""
    code = (
        "import platform; from importlib.metadata import version as v; "
        f"print('.'.join(platform.python_version_tuple()[:2]), *(v(p).split('+')[0] for p in {PACKAGES}))"
    )
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def results(file: Path) -> list[str]:
    """Return how many tests passed, failed and were skipped, and whether those on two ranks passed."""
    cases = list(ElementTree.parse(file).iter("testcase"))
    count = Counter(outcome(case) for case in cases)
    ranks = {outcome(case) for case in cases if case.get("name", "").startswith(TWO_RANKS)}
    told = ", ".join(f"{count[each]} {each}" for each in ("passed", "failed", "skipped") if count[each])
    return [told, "yes" if ranks == {"passed"} else "no"]


def outcome(case: ElementTree.Element) -> str:
    """Return what became of a test."""
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


if __name__ == "__main__":
    main(sys.argv[1:])
