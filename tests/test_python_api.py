"""The examples of docs/python-api.md run as they stand there; that of TRL is in trainers/test_trl.py."""

from __future__ import annotations

import functools
import re

import pytest
from material import ROOT, run_command
from trainers.documented import block, prepare, python

import sstoken_plugin

PAGE = "python-api.md"
documented = functools.partial(block, page=PAGE)


@pytest.fixture
def printed(tiny_llama, tmp_path, monkeypatch):
    """Run the example of a section and return what it printed."""

    def run(heading, data="outputs/python-api/data.jsonl"):
        monkeypatch.chdir(tmp_path)
        prepare(tmp_path, tiny_llama, data)
        (tmp_path / "example.py").write_text(documented(heading, "python"))
        # A progress bar would stand on the line of a print.
        options = {"PYTHONPATH": f"{ROOT}:{ROOT / 'startup'}", "TQDM_DISABLE": "1"}
        return run_command(python(), "example.py", **options).stdout

    return run


def test_selection_and_plain_training_are_compared_by_their_evaluation(printed, tmp_path):
    told = printed("attach")
    found = re.search(r"^(\d+\.\d+)\n(\d+\.\d+)\n\[(0\.8\d*), (0\.6\d*)\]\n\[\]$", told, flags=re.MULTILINE)
    assert found, told
    assert found[1] != found[2]
    assert (tmp_path / "outputs/python-api/selected/sstoken/report.html").exists()
    assert not (tmp_path / "outputs/python-api/plain/sstoken").exists()


def test_settings_are_checked_and_say_what_is_printed_on_the_page(capsys):
    exec(documented("SSTokenConfig", "python"), {})
    assert capsys.readouterr().out == documented("SSTokenConfig", "text")


def test_axolotl_trains_a_yaml_from_python(printed, tmp_path):
    told = printed("SSTokenPlugin", "outputs/cpu-demo/data.jsonl")
    assert "ssToken is active: it trains on 40%" in told
    assert told.splitlines()[-1] == "0.4"
    assert (tmp_path / "outputs/python-api/axolotl/adapter_model.safetensors").exists()


def test_the_page_lists_every_public_name():
    page = (ROOT / "docs" / PAGE).read_text()
    assert all(f"{name}`" in page for name in sstoken_plugin.__all__)
