"""Set-up finds a Python that runs, among names that are there and do not, says what is missing and asks before apt."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from material import ROOT

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
BASE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
STOPS = "echo 'pyenv: command not found' >&2; exit 127"
RUNS = f'exec {BASE} "$@"'
pytestmark = pytest.mark.skipif(find_spec("ensurepip") is None, reason="this Python makes no environments")


@pytest.fixture
def machine(tmp_path):
    """A PATH with the programs that are named, and what a script of ours prints there."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def run(script, *arguments, programs, root=ROOT, **environment):
        for name, body in programs.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"#!/bin/sh\n{body}\n")
            file.chmod(0o755)
        # bash, sort and the like, but no Python and no uv.
        for tool in ("bash", "dirname", "grep", "head", "sort", "cut", "tr", "awk", "env", "cat", "cmp", "mkdir", "ln"):
            (folder / tool).unlink(missing_ok=True)
            (folder / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
        path = f"{tmp_path / 'pyenv' / 'shims'}:{folder}"
        command = [str(root / "scripts" / script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={"PATH": path, **environment})

    return run


def test_the_first_of_the_versions_that_runs_is_taken(machine):
    run = machine("find_python.sh", "3.99", VERSION, programs={"bin/python3.99": STOPS, f"bin/python{VERSION}": RUNS})
    assert os.path.realpath(run.stdout.strip()) == BASE


def test_a_name_that_lies_about_its_version_is_not_taken(machine):
    run = machine("find_python.sh", "3.99", programs={"bin/python3.99": RUNS, "bin/python3": RUNS})
    assert (run.returncode, run.stdout) == (1, "")


def test_python3_serves_where_it_is_the_version(machine):
    run = machine("find_python.sh", VERSION, programs={"bin/python3": RUNS})
    assert os.path.realpath(run.stdout.strip()) == BASE


SHIM = {f"pyenv/shims/python{VERSION}": STOPS, f"pyenv/versions/{VERSION}.0/bin/python": RUNS}


def test_a_shim_that_stops_leads_to_the_version_behind_it(machine):
    run = machine("find_python.sh", VERSION, programs=SHIM)
    assert os.path.realpath(run.stdout.strip()) == BASE


def test_a_version_that_somebody_switched_on_is_not_overruled(machine):
    run = machine("find_python.sh", VERSION, programs=SHIM, PYENV_VERSION="3.98.1")
    assert (run.returncode, run.stdout) == (1, "")
    run = machine("find_python.sh", VERSION, programs={**SHIM, f"pyenv/shims/python{VERSION}": RUNS}, PYENV_VERSION="x")
    assert os.path.realpath(run.stdout.strip()) == BASE


def test_a_python_of_uv_is_found_and_none_is_downloaded(machine):
    uv = f'[ "$1 $2 $3" = "python find --no-python-downloads" ] && echo {BASE}'
    run = machine("find_python.sh", VERSION, programs={"bin/uv": uv})
    assert os.path.realpath(run.stdout.strip()) == BASE


def test_python_in_the_environment_is_the_only_one_asked(machine):
    programs = {f"bin/python{VERSION}": RUNS, "else/where": STOPS}
    run = machine("find_python.sh", VERSION, programs=programs, PYTHON="/no/such/python")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"PYTHON=/no/such/python is none of {VERSION}, or does not run.\n"


def test_set_up_without_a_python_says_what_to_install(machine):
    run = machine("setup.sh", programs={"bin/python3.12": STOPS})
    assert run.returncode == 1
    assert run.stderr.startswith("No Python 3.12 or 3.13 or 3.11 that set-up can use was found: install one")
    run = machine("setup.sh", "0.20.0", "somewhere", programs={"bin/python3.12": STOPS})
    assert run.stderr.startswith("No Python 3.12 that set-up can use was found")
    run = machine("setup.sh", "1.0", "somewhere", programs={"bin/python3.12": STOPS})
    assert run.stderr.startswith("No Python 3.12 or 3.13 or 3.11 that")


def test_a_python_that_cannot_make_environments_is_named_with_the_fix(machine, tmp_path):
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    lacks = f'export PYTHONPATH={tmp_path}; exec {BASE} "$@"'
    run = machine("find_python.sh", VERSION, programs={"bin/python3": lacks})
    assert (run.returncode, run.stdout) == (1, "")
    assert f"has no ensurepip: install python{VERSION}-venv, or uv" in run.stderr
    run = machine("find_python.sh", VERSION, programs={"bin/python3": lacks, "bin/uv": "exit 1"})
    assert os.path.realpath(run.stdout.strip()) == BASE


@pytest.mark.parametrize("changed", ["pyproject.toml", "startup/sstoken_startup_trl.py"])
def test_set_up_runs_again_where_what_it_installed_has_changed_and_not_otherwise(machine, tmp_path, changed):
    """An editable installation has copies of the start-up files, so that a change of one would have no effect."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "pyproject.toml", project)
    for folder in ("scripts", "startup"):
        shutil.copytree(ROOT / folder, project / folder)
    installed = f'case "$*" in *accelerate*) ;; *) {RUNS};; esac'
    uv = (
        'for word in "$@"; do last=$word; done\n'
        f'[ "$1" = pip ] || {{ mkdir -p "$last/bin" && ln -sf {tmp_path}/its/python "$last/bin/python"; }}'
    )
    programs = {"bin/uv": uv, f"bin/python{VERSION}": RUNS, "its/python": installed}

    def set_up():
        run = machine("setup.sh", programs=programs, root=project)
        assert run.returncode == 0, run.stderr
        return "--no-deps --editable ." in run.stdout

    assert set_up()
    assert not set_up()
    with (project / changed).open("a") as file:
        file.write("\n")
    assert set_up()
    assert not set_up()


APT = 'echo "apt-get $*"'


@pytest.mark.parametrize("script", ["browser.sh", "test.sh"])
def test_a_missing_browser_is_told_before_set_up_and_nothing_is_installed(machine, script):
    run = machine(script, programs={"bin/apt-get": APT, "bin/sudo": RUNS, f"bin/python{VERSION}": RUNS})
    assert (run.returncode, run.stdout) == (1, "")
    assert "packages chromium and chromium-driver" in run.stderr
    assert "--install-browser" in run.stderr
    assert run.stderr.count("\n") == 1


def test_the_browser_is_installed_where_somebody_asks_for_it(machine):
    programs = {"bin/apt-get": f"{APT} >&2", "bin/id": "echo 0"}
    run = machine("browser.sh", "--install-browser", programs=programs)
    assert run.returncode == 0, run.stderr
    assert "apt-get install -y -qq --no-install-recommends chromium chromium-driver" in run.stderr


def test_where_the_browser_cannot_be_installed_its_packages_are_named(machine):
    run = machine("browser.sh", "--install-browser", programs={"bin/id": "echo 0"})
    assert run.returncode == 1
    assert "packages chromium and chromium-driver" in run.stderr


def test_a_browser_that_is_there_is_taken(machine):
    run = machine("browser.sh", programs={"bin/chromium": STOPS, "bin/chromedriver": STOPS})
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
