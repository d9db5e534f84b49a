"""The bare name: every command, both kinds of installation, and a start-up file that does nothing else."""

import re
import subprocess
import sys
import sysconfig
import types
import venv
from importlib.metadata import entry_points

import pytest
from conftest import AXOLOTL, write
from material import ROOT, run_command

from sstoken_plugin.axolotl import compatibility, releases
from sstoken_plugin.base import versions

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
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True)
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


def test_only_the_bare_name_stands_for_another():
    import sstoken_startup

    load = sstoken_startup.resolve_short_name(lambda name: name)
    names = [
        "sstoken", "sstoken_plugin.SSTokenPlugin", "some.Plugin", "nobody", "token", "token_plugin.TokenPlugin",
        "tokens.TokenPlugin", "sstream.Plugin", "sstoken_tools.Plugin", "json.JSONDecoder", "__main__.Plugin",
    ]  # fmt: skip
    assert list(map(load, names)) == ["sstoken_plugin.SSTokenPlugin", *names[1:]]
    with pytest.raises(ValueError, match="list of names"):
        load(7)


def test_the_start_up_file_and_the_plugin_know_the_same_names():
    """The one must import nothing of the other."""
    import sstoken_startup

    assert (sstoken_startup.SHORT_NAME, *sstoken_startup.DOTTED_NAMES) == compatibility.NAMES


@pytest.mark.parametrize(
    ("words", "is_printed"), [(["sstoken-inspect", "c.yaml"], False), (["train", "sstoken-c.yaml"], True), ([], True)]
)
def test_the_logo_of_axolotl_is_not_before_the_words_of_our_commands(monkeypatch, words, is_printed):
    import sstoken_startup

    printed = []
    monkeypatch.setattr(sys, "argv", ["axolotl", *words])
    sstoken_startup.without_logo(lambda: printed.append("logo"))()
    assert printed == ["logo"] * is_printed


def test_a_module_that_was_made_by_hand_is_one(monkeypatch):
    """Notebooks and scripts put modules without a spec into sys.modules, `__main__` among them."""
    import sstoken_startup

    monkeypatch.setitem(sys.modules, "stokens", types.ModuleType("stokens"))
    load = sstoken_startup.resolve_short_name(lambda name: name)
    assert load("stokens.Plugin") == "stokens.Plugin"
    assert load("stokens:Plugin") == "stokens:Plugin"
    assert load("others.SSTokenPlugin") == "others.SSTokenPlugin"


MISSPELT = [
    "sstokn", "ss_token", "ss-token", "ssToken", "SSToken", "sstoken2", "sstokens", "sstoken-plugin", "sstoken_plugin",
    "sstoken.SSTokenPlugin", "sstoken_plugin.SSTokenPlugn", "sstoken_plugin.SSToken", "sstokenplugin.SSTokenPlugin",
    "sstoken_plugn.SSTokenPlugin", "axolotl.integrations.sstoken", "axolotl.integrations.sstoken.SSTokenPlugin",
]  # fmt: skip


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_name_is_told_in_a_sentence(name, config, tmp_path):
    from axolotl.cli.config import load_cfg

    with pytest.raises(ValueError, match=rf"^plugins: '{re.escape(name)}' is no plugin; did you mean 'sstoken'\?$"):
        load_cfg(str(write({**config, "plugins": [name]}, tmp_path)))


def test_a_misspelt_name_stops_a_real_run(config, tmp_path):
    file = write({**config, "plugins": ["sstokn"]}, tmp_path)
    result = run_command(*COMMANDS["accelerate"], str(file), check=False)
    assert result.returncode != 0
    assert "plugins: 'sstokn' is no plugin; did you mean 'sstoken'?" in result.stdout


def test_a_text_in_place_of_the_list_is_told(config, tmp_path):
    from axolotl.cli.config import load_cfg

    with pytest.raises(ValueError, match=r"plugins: .*list"):
        load_cfg(str(write({**config, "plugins": "sstoken"}, tmp_path)))


SETTINGS = {"sstoken": {"ratio": 0.5}}


@pytest.mark.parametrize("plugins", [["sstoken", None], [SETTINGS], ["sstoken", SETTINGS], SETTINGS], ids=str)
@pytest.mark.parametrize("block", [None, {"ratio": 0.5}], ids=str)
def test_what_is_no_list_of_names_is_told(config, tmp_path, plugins, block):
    from axolotl.cli.config import load_cfg

    with pytest.raises(
        ValueError, match=r"^plugins: .*list of names.*`plugins: \[sstoken\]`.* into a block `sstoken:`"
    ):
        load_cfg(str(write({**config, "plugins": plugins, "sstoken": block}, tmp_path)))


FOREIGN = "axolotl.integrations.grokfast.GrokfastPlugin"


@pytest.mark.parametrize("plugins", [None, [], [FOREIGN]], ids=str)
@pytest.mark.parametrize("block", [{"ratio": 0.5}, {}, "on"], ids=str)
def test_a_block_without_the_plugin_is_refused(config, tmp_path, plugins, block):
    from axolotl.cli.config import load_cfg

    named = ", ".join([*(plugins or []), "sstoken"])
    with pytest.raises(ValueError, match=rf"^sstoken: it would do nothing, .*write `plugins: \[{re.escape(named)}\]`"):
        load_cfg(str(write({**config, "plugins": plugins, "sstoken": block}, tmp_path)))


def test_a_block_without_the_plugin_stops_a_real_run_and_an_empty_one_does_not(config, tmp_path):
    settings = {**config, "max_steps": 1, "plugins": None}
    result = run_command(
        *COMMANDS["python"], str(write({**settings, "sstoken": {"ratio": 0.5}}, tmp_path)), check=False
    )
    assert result.returncode != 0
    assert "sstoken: it would do nothing" in result.stdout
    assert ACTIVE not in run_command(*COMMANDS["python"], str(write({**settings, "sstoken": None}, tmp_path))).stdout
    overridden = run_command(*COMMANDS["python"], str(write(settings, tmp_path)), "--sstoken.ratio=0.5", check=False)
    assert overridden.returncode != 0
    assert "it would do nothing" in overridden.stdout


NAMES = [
    ["sstoken"],
    ["sstoken_plugin.SSTokenPlugin"],
    ["sstoken", "sstoken"],
    ["sstoken", "sstoken_plugin.SSTokenPlugin"],
    ["sstoken_plugin.SSTokenPlugin", "axolotl.integrations.grokfast.GrokfastPlugin", "sstoken"],
    # The form of an entry point, which Axolotl itself reads since 0.21.
    *([["sstoken_plugin:SSTokenPlugin"], ["sstoken", "sstoken_plugin:SSTokenPlugin"]] if AXOLOTL >= (0, 21) else []),
]


@pytest.mark.parametrize("names", NAMES, ids=", ".join)
def test_by_whatever_names_it_counts_once(names, config, train, steps, caplog):
    run = train({**config, "max_steps": 1, "plugins": names, "sstoken": {"ratio": 0.5, "warmup_ratio": 0.0}})
    assert len(steps) == run.cfg.gradient_accumulation_steps
    assert run.lines[-1]["sstoken/selected_ratio"] == pytest.approx(0.5, abs=0.1)
    callbacks = [type(callback).__name__ for callback in run.trainer.callback_handler.callbacks]
    assert callbacks.count("HistoryCallback") == callbacks.count("ReportCallback") == 1


def test_the_group_whose_members_take_part_in_every_run_does_not_have_us():
    assert not [point for point in entry_points(group="axolotl.plugins") if "sstoken" in point.value]


# The numbers are those of pyproject.toml: test_packaging.py.
OLDEST, NEWEST = (".".join(map(str, bound)) for bound in (releases.OLDEST, releases.NEWEST))


def test_an_unsupported_axolotl_is_named_with_the_range(monkeypatch):
    monkeypatch.delenv("SSTOKEN_ANY_AXOLOTL", raising=False)
    words = re.escape(f"plugins: sstoken runs on Axolotl {OLDEST} to {NEWEST}, ")
    for installed in ("0.16.1", f"0.{releases.NEWEST[1] + 1}.0.dev0", "1.0", "main"):
        monkeypatch.setattr(versions, "version", lambda package, installed=installed: installed)
        with pytest.raises(ValueError, match=rf"^{words}.* {installed};"):
            releases.refuse_unsupported()
        with monkeypatch.context() as allowed:
            allowed.setenv("SSTOKEN_ANY_AXOLOTL", "1")
            releases.refuse_unsupported()
    for installed in (f"{OLDEST}.0", f"{NEWEST}.3", "0.20.0.post1", f"{NEWEST}rc1", "0.19.0+cu130"):
        monkeypatch.setattr(versions, "version", lambda package, installed=installed: installed)
        releases.refuse_unsupported()


@pytest.mark.parametrize("name", ["sstoken", "sstoken_plugin.SSTokenPlugin", "sstoken_plugin.plugin.SSTokenPlugin"])
def test_an_unsupported_axolotl_stops_the_run_by_whatever_name(name, config, tmp_path):
    """The metadata of a release to come, before the real one on the path."""
    metadata = tmp_path / "path" / "axolotl-0.99.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: axolotl\nVersion: 0.99.0\n")
    code = f"from axolotl.cli.config import load_cfg; load_cfg({str(write({**config, 'plugins': [name]}, tmp_path))!r})"
    path = {"PYTHONPATH": str(metadata.parent), "SSTOKEN_ANY_AXOLOTL": ""}
    run = run_command("python", "-c", code, check=False, **path)
    assert run.returncode == 1
    assert f"plugins: sstoken runs on Axolotl {OLDEST} to {NEWEST}, and this is 0.99.0" in run.stdout.splitlines()[-1]


def test_a_yaml_that_follows_in_the_same_process_and_names_nothing_is_plain(config, train, tmp_path):
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    def follow(**changes):
        return load_cfg(str(write({**config, "plugins": [], **changes}, tmp_path)))

    run = train({**config, "max_steps": 1})
    plugins = PluginManager.get_instance()
    assert plugins.get_trainer_cls(run.cfg) is not None
    for changes in (
        {"trainer_cls": "my.Trainer"},
        {"plugins": ["axolotl.integrations.grokfast.GrokfastPlugin"]},
    ):
        cfg = follow(**changes)
        assert "sstoken" not in cfg
        assert plugins.get_trainer_cls(cfg) is None
        assert plugins.load_datasets(cfg) is None
    # Would ask a trainer for much that None lacks.
    plugins.post_trainer_create(cfg, None)


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
