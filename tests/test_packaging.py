"""What is installed: the wheel's files and bounds, and that no version of a working environment changes."""

import ast
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint, packages_distributions, version

import pytest
import yaml
from constraints import build_wheel, changes
from material import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import sstoken_plugin
from sstoken_plugin.axolotl.releases import NEWEST, OLDEST

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "pydantic", "numpy")
# Extras, and the folders of the package that may import each.
TRAINERS = ("axolotl", "trl", "llamafactory", "swift")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_and_its_start_up_file_and_nothing_else(wheel):
    files = zipfile.ZipFile(wheel).namelist()
    home = f"sstoken_plugin-{sstoken_plugin.__version__}.dist-info"
    tops = {name.split("/")[0] for name in files}
    startup = {"sstoken_startup.pth", *(file.name for file in (ROOT / "startup").glob("*.py"))}
    assert tops == {"sstoken_plugin", *startup, home}
    assert {"sstoken_plugin/py.typed", "sstoken_plugin/report/page/page.html"} <= set(files)
    tree = {str(file.relative_to(ROOT)) for file in (ROOT / "sstoken_plugin").rglob("*") if file.is_file()}
    assert {name for name in files if name.startswith("sstoken_plugin/")} == {
        name for name in tree if "__pycache__" not in name
    }


def test_the_wheel_says_who_takes_it(wheel):
    with zipfile.ZipFile(wheel) as opened:
        (file,) = [name for name in opened.namelist() if name.endswith("METADATA")]
        said = opened.read(file).decode().split("\n\n")[0].splitlines()
    assert f"Version: {sstoken_plugin.__version__}" in said
    assert "License-Expression: Apache-2.0" in said
    assert {f"Classifier: Programming Language :: Python :: {each}" for each in ("3.11", "3.12", "3.13")} <= set(said)
    assert not any(line.startswith("Classifier: License") for line in said)
    assert {line.split()[1] for line in said if line.startswith("Project-URL")} >= {"Homepage,", "Changelog,"}


def test_what_is_cited_is_this_package_and_the_paper_of_the_method():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["title"], cited["license"]) == (PROJECT["name"], PROJECT["license"])
    assert cited["repository-code"] == PROJECT["urls"]["Homepage"]
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in PROJECT["authors"]]
    (paper,) = cited["references"]
    assert f"]({paper['url']})" in (ROOT / "README.md").read_text().split("\n## ")[0]
    assert all(author.keys() == {"given-names", "family-names"} for author in paper["authors"])


def test_every_requirement_is_met_by_what_axolotl_brings():
    asked = [*BASE, Requirement(*PROJECT["optional-dependencies"]["axolotl"])]
    unmet = [str(needs) for needs in asked if not needs.specifier.contains(version(needs.name), prereleases=True)]
    assert unmet == []


@pytest.mark.parametrize("extras", [(), ("axolotl",)], ids=["alone", "axolotl"])
def test_installing_the_package_changes_no_version(without_the_package, wheel, extras):
    if extras and sys.version_info >= (3, 13):
        pytest.skip("pip would resolve Axolotl's pin of zstandard, which set-up overrides there")
    assert changes(without_the_package, wheel, extras) == []


def test_a_requirement_that_nothing_installed_meets_is_told(without_the_package, wheel, tmp_path):
    other = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as opened, zipfile.ZipFile(other, "w") as written:
        for name in opened.namelist():
            old, new = b"Requires-Dist: ", b"Requires-Dist: packaging<1\nRequires-Dist: "
            change = name.endswith("METADATA")
            written.writestr(name, opened.read(name).replace(old, new, 1) if change else opened.read(name))
    assert any("packaging" in line for line in changes(without_the_package, other))


def test_the_bounds_are_the_oldest_and_the_newest_that_the_tests_ran_on():
    ran = list(releases())
    for needs in BASE:
        if needs.name in PACKAGES:
            assert needs.specifier == bounds(row[needs.name] for row in ran), needs.name
    assert SpecifierSet(PROJECT["requires-python"]) == bounds(row["Python"] for row in ran)
    trainers = [Requirement(*PROJECT["optional-dependencies"][extra]) for extra in TRAINERS]
    assert {row["trainer"] for row in ran} == {needs.name for needs in trainers}
    for needs in trainers:
        assert needs.specifier == bounds(row["release"] for row in ran if row["trainer"] == needs.name), needs.name


def test_the_axolotl_that_is_refused_is_the_one_that_pip_would_not_take():
    (needs,) = map(Requirement, PROJECT["optional-dependencies"]["axolotl"])
    assert needs.specifier == bounds(".".join(map(str, bound)) for bound in (OLDEST, NEWEST))


def releases():
    """Yield the rows of the tables of releases by the names of their columns, with trainer and release."""
    header = None
    for line in (ROOT / "docs" / "support.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = None
        elif {"Python", *PACKAGES} <= set(cells):
            header = cells
        elif header and not line.startswith("| ---"):
            row = dict(zip(header, cells, strict=True))
            row["trainer"], row["release"] = row["trainer"].split() if "trainer" in row else ("axolotl", row["Axolotl"])
            yield row


def bounds(versions):
    """Return what allows the oldest to the newest of some versions, up to the next minor release."""
    versions = sorted(map(Version, versions))
    oldest, newest = versions[0], versions[-1]
    return SpecifierSet(f">={oldest},<{newest.major}.{newest.minor + 1}")


def test_axolotl_lists_each_command_under_its_own_name():
    group = "axolotl.cli_commands"
    for name, place in PROJECT["entry-points"][group].items():
        assert EntryPoint(name, place, group).load().name == name


def test_what_serves_every_trainer_imports_what_every_trainer_brings():
    brought = {needs.name.lower() for needs in BASE} | {"sstoken-plugin"}
    names = packages_distributions()
    foreign = []
    for file in sorted((ROOT / "sstoken_plugin").rglob("*.py")):
        if file.relative_to(ROOT / "sstoken_plugin").parts[0] in (*TRAINERS, "experiments", "__main__.py"):
            continue
        for name in imported(ast.parse(file.read_text())) - sys.stdlib_module_names - {"sstoken_plugin"}:
            if not {each.lower() for each in names.get(name, [name])} & brought:
                foreign.append(f"{file.relative_to(ROOT)}: {name}")
    assert foreign == []


def imported(module):
    """Return the top-level packages that come with the import of a module: those of functions may be missing."""
    found = set()
    for node in module.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found
