"""The bare name: every command, both kinds of installation, and a start-up file that does nothing else."""

import subprocess
import sys
import sysconfig
import venv

import pytest
from conftest import ROOT, run_command, write

ACTIVE = "ssToken is active"
COMMANDS = {
    "accelerate": ("accelerate", "launch", "-m", "axolotl.cli.train"),
    "python": ("python", "-m", "axolotl.cli.train"),
    "axolotl": ("axolotl", "train"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_bare_name_trains(command, config, tmp_path):
    result = run_command(*command, str(write({**config, "max_steps": 1}, tmp_path)))
    assert ACTIVE in result.stdout
    assert "sstoken/selected_ratio" in result.stdout


def test_the_bare_name_preprocesses_and_overrides_work(config, tmp_path):
    file = write({**config, "max_steps": 1}, tmp_path)
    assert "Success!" in run_command("axolotl", "preprocess", str(file)).stdout
    output = run_command("accelerate", "launch", "-m", "axolotl.cli.train", str(file), "--sstoken.ratio=0.25").stdout
    assert "25% of each sample's response tokens" in output


def test_the_dotted_name_needs_no_start_up_file(config, tmp_path):
    file = write({**config, "max_steps": 1, "plugins": ["sstoken_plugin.SSTokenPlugin"]}, tmp_path)
    assert ACTIVE in run_command("python", "-m", "axolotl.cli.train", str(file), SSTOKEN_STARTUP="0").stdout


def test_without_the_start_up_file_the_bare_name_stops_the_run(config, tmp_path):
    file = write({**config, "max_steps": 1}, tmp_path)
    result = run_command("python", "-m", "axolotl.cli.train", str(file), check=False, SSTOKEN_STARTUP="0")
    assert result.returncode != 0


@pytest.fixture(scope="module")
def clean_environment(tmp_path_factory):
    """A new environment whose only installed package is our wheel; the rest is borrowed from this one."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A line of a .pth file adds a folder whose own .pth files are not read: our editable install stays out.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_works_in_a_clean_environment(clean_environment, config, tmp_path):
    where = "import sstoken_plugin; print(sstoken_plugin.__file__)"
    location = subprocess.run([clean_environment, "-c", where], capture_output=True, text=True, cwd=tmp_path).stdout
    assert "clean" in location
    file = write({**config, "max_steps": 1}, tmp_path)
    result = subprocess.run(
        [clean_environment, "-m", "axolotl.cli.train", str(file)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert ACTIVE in result.stdout + result.stderr


def test_interpreter_start_loads_nothing_but_the_start_up_file():
    def loaded(setting: str) -> set[str]:
        code = "import sys; print(*sys.modules)"
        return set(run_command("python", "-c", code, SSTOKEN_STARTUP=setting).stdout.split())

    assert loaded("1") == loaded("0")
    assert "sstoken_startup" in loaded("1")
    assert "importlib.metadata" not in loaded("1")


def test_only_unknown_names_without_a_dot_are_looked_up(monkeypatch):
    import sstoken_startup

    asked = []

    def stock(name):
        asked.append(name)
        module, _ = name.rsplit(".", 1)
        return module

    load = sstoken_startup.resolve_short_names(stock)
    assert load("some.Plugin") == "some"
    assert load("sstoken") == "sstoken_plugin"
    assert asked == ["some.Plugin", "sstoken", "sstoken_plugin.SSTokenPlugin"]
    with pytest.raises(ValueError, match="not enough values"):
        load("nobody")


def test_it_steps_aside_where_axolotl_knows_short_names():
    import sstoken_startup

    load = sstoken_startup.resolve_short_names(lambda name: f"axolotl's own {name}")
    assert load("sstoken") == "axolotl's own sstoken"


@pytest.mark.parametrize("source", ["raise SystemError", "load_plugins = 1", ""], ids=repr)
def test_a_strange_plugin_module_is_left_as_it_is(source, tmp_path):
    package = tmp_path / "axolotl" / "integrations"
    package.mkdir(parents=True)
    (tmp_path / "axolotl" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "base.py").write_text(source)
    code = f"""import sys; sys.path.insert(0, {str(tmp_path)!r})
import axolotl.integrations.base as module
print(sorted(vars(module)))"""
    result = run_command("python", "-c", code, check=False)
    without = run_command("python", "-c", code, check=False, SSTOKEN_STARTUP="0")
    assert result.returncode == without.returncode
    if not result.returncode:
        assert result.stdout == without.stdout
