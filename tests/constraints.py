"""Whether installing the package changes a version of an environment: `python tests/constraints.py PYTHON [EXTRA ...]`.

PYTHON is the interpreter of the environment, which needs pip and is left as it is. EXTRA is an extra of pyproject.toml
whose bounds the environment must meet too, such as `trl`. The wheel is built, unless `--wheel FILE` names one, and pip
tries to install it beside a constraints file of all that is there, without an index of packages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this tree into a folder and return its file."""
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def changes(python: str, wheel: Path, extras: Sequence[str] = ()) -> list[str]:
    """Return what installing a wheel would change in an environment, beside the package itself: nothing is right.

    Args:
        python: interpreter of the environment.
        wheel: file of the wheel.
        extras: of the package, to be met as well.

    Returns:
        Packages as `name==version` that would be installed, or pip's words where it finds no way.
    """
    with tempfile.TemporaryDirectory() as folder:
        installed, report = Path(folder, "installed.txt"), Path(folder, "report.json")
        # From elsewhere: in a checkout `python -m pip` would find packages that lie beside it.
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True, cwd=folder).stdout
        # What comes from a folder or a repository has no version there, and cannot be a constraint.
        installed.write_text("".join(f"{line}\n" for line in frozen.splitlines() if "==" in line and "@" not in line))
        wanted = f"{wheel.resolve()}[{','.join(extras)}]" if extras else str(wheel.resolve())
        run = subprocess.run(
            [*pip, "install", "--dry-run", "--no-index", "-c", str(installed), "--report", str(report), wanted],
            capture_output=True,
            text=True,
            cwd=folder,
            # Constraints that this machine has for pip are not those of the environment.
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_CONSTRAINT": ""},
        )
        if run.returncode:
            # The cause is on stdout, behind a line for every requirement that is met.
            met = ("Requirement already satisfied", "Processing", "Looking in")
            said = (run.stdout + run.stderr).splitlines()
            return [line.strip() for line in said if line.strip() and not line.strip().startswith(met)]
        found = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    return [f"{each['name']}=={each['version']}" for each in found if each["name"] != "sstoken-plugin"]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", metavar="PYTHON")
    parser.add_argument("extras", metavar="EXTRA", nargs="*")
    parser.add_argument("--wheel", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        changed = changes(options.python, options.wheel or build_wheel(Path(folder)), options.extras)
    if changed:
        sys.exit(f"Installing the package changes {options.python}: " + "\n".join(changed))
    print(f"Installing the package changes no version of {options.python}.")


if __name__ == "__main__":
    main()
