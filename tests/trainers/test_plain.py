"""transformers' own Trainer, padded and padding-free: what holds in every trainer, and the example of the docs."""

from __future__ import annotations

from material import ROOT, run_command

from trainers import run_plain
from trainers.cases import Cases
from trainers.documented import block, prepare, python


class TestPlain(Cases):
    """What holds in every trainer."""

    adapter = run_plain


def test_the_documented_example_runs(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_llama, "outputs/trainer/data.jsonl")
    (tmp_path / "example.py").write_text(block("transformers' Trainer", "python"))
    told = run_command(python(), "example.py", PYTHONPATH=f"{ROOT}").stdout
    assert "ssToken is active: it trains on 60%" in told
    assert (tmp_path / "outputs/trainer/sstoken/report.html").exists()
    assert (tmp_path / "outputs/trainer/adapter_model.safetensors").exists()
