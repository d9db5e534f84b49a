"""ms-swift: the cases of every trainer, its command lines, and what it must not be asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from material import ROOT, run_command
from swift.callbacks import callbacks_map
from swift.pipelines import sft_main

import sstoken_startup_swift as startup
from sstoken_plugin.base import versions
from sstoken_plugin.swift import front, refusals, releases, settings
from trainers import run_swift
from trainers.cases import SELECTS, Cases
from trainers.documented import block, prepare

ACTIVE = "ssToken is active: it trains on"
BASH = str(shutil.which("bash"))
REFUSED = {
    "enable_dft_loss": True, "enable_channel_loss": True, "label_smoothing_factor": 0.1, "loss_scale": "react",
    "lisa_activated_layers": 1, "tuner_type": "adalora",
}  # fmt: skip


@pytest.fixture(autouse=True)
def settings_of_one_test():
    """What a test sets stays behind otherwise: datasets puts another object into the place of os.environ."""
    yield
    os.environ.pop("SSTOKEN", None)


class TestSwift(Cases):
    """What holds in every trainer."""

    adapter = run_swift

    def test_a_resumed_run_compares_with_the_model_before_training(self, train, micros):
        """ms-swift gives it the adapter of the checkpoint before the selection begins."""
        whole = train(saves=2, sstoken=SELECTS)
        folder = Path(whole.trainer.args.output_dir) / "checkpoint-2"
        resumed = train(saves=2, sstoken=SELECTS, resumes_from=str(folder))
        assert resumed.trainer.sstoken.warnings == whole.trainer.sstoken.warnings
        for one, other in zip(micros[2:4], micros[4:], strict=True):
            assert torch.equal(one.step.scores.history, other.step.scores.history)
            assert torch.equal(one.step.kept, other.step.kept)

    @pytest.mark.parametrize("option", REFUSED)
    def test_what_selection_cannot_run_beside_is_refused(self, train, option):
        beside = {"tuner_type": "full"} if option == "lisa_activated_layers" else {}
        with pytest.raises(ValueError, match=rf"^{option}: .*; .*, or unset SSTOKEN and take `sstoken` out of"):
            train(options={option: REFUSED[option], **beside}, sstoken=SELECTS)

    def test_a_run_with_settings_that_does_not_name_the_callback_stops(self, plan, monkeypatch):
        monkeypatch.setenv("SSTOKEN", "{}")
        with pytest.raises(
            ValueError, match=r"^SSTOKEN: nobody reads it, and every token would be trained on; name both"
        ):
            run_swift.train(plan)

    def test_a_run_that_names_the_callback_without_settings_stops(self, plan, monkeypatch):
        monkeypatch.delenv("SSTOKEN", raising=False)
        given = run_swift.settings(plan) | {"external_plugins": [str(run_swift.REGISTER)], "callbacks": ["sstoken"]}
        with pytest.raises(ValueError, match=r"^callbacks: sstoken finds no settings; set SSTOKEN in the environment"):
            sft_main(run_swift.words(given))

    def test_a_run_that_names_the_callback_without_its_file_stops(self, plan, monkeypatch):
        monkeypatch.setenv("SSTOKEN", "{}")
        monkeypatch.delitem(callbacks_map, "sstoken", raising=False)
        with pytest.raises(ValueError, match=r"^callbacks: sstoken is not there without its file; name both"):
            sft_main(run_swift.words(run_swift.settings(plan) | {"callbacks": ["sstoken"]}))

    def test_settings_among_the_arguments_stop_the_run(self, plan, monkeypatch):
        monkeypatch.setattr("sys.argv", ["sft", "--sstoken", "{}"])
        with pytest.raises(ValueError, match=r"^--sstoken: ms-swift has no such argument"):
            run_swift.train(plan)

    def test_a_plain_run_is_left_as_it_is(self, plan):
        run = run_swift.train(plan)
        assert type(run.trainer).__module__.startswith("swift.")
        assert not any("sstoken" in name for line in run.lines for name in line)


@pytest.mark.parametrize("text", ['{"ratio": 0.3}', "{ratio: 0.3}", str({"ratio": 0.3}), "ratio: 0.3"])
def test_settings_are_read_however_they_are_written(text, monkeypatch):
    monkeypatch.setenv("SSTOKEN", text)
    assert settings.read().ratio == 0.3


def test_null_below_env_is_none(monkeypatch):
    """ms-swift puts `str` of the block into the environment."""
    block = yaml.safe_load("{history_cache: null, seed: null, keep_eos: false}")
    monkeypatch.setenv("SSTOKEN", str(block))
    config = settings.read()
    assert (config.history_cache, config.seed, config.keep_eos) == (False, None, False)


@pytest.mark.parametrize("text", ["", "0.6", "ratio=0.6", "[", "{", "None"])
def test_what_is_no_block_is_refused(text, monkeypatch):
    monkeypatch.setenv("SSTOKEN", text)
    with pytest.raises(ValueError, match=r"^SSTOKEN: .* is not a block of settings; write it as in"):
        settings.read()


def test_weights_become_labels_or_are_refused():
    """As a trainer of ms-swift hands them to the loss."""

    class Loss:
        template = SimpleNamespace(_loss_scale="react")

    given = {"labels": torch.tensor([[-100, 5, 6, 7]]), "channel": ["a"], "text_position_ids": None}
    seen = {}

    def take(self, model, inputs, *args):
        seen.update(inputs)

    trainer = type("Trainer", (front.SwiftFront, Loss), {})()
    model = SimpleNamespace(training=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front.TokenSelectionTrainer, "compute_loss", take)
        trainer.compute_loss(model, {**given, "loss_scale": torch.tensor([[0.0, 1.0, 0.0, 1.0]])})
        assert seen["labels"].tolist() == [[-100, 5, -100, 7]]
        assert seen.keys() == {"labels"}
        with pytest.raises(ValueError, match=r"^loss_scale: react weighs tokens against each other"):
            trainer.compute_loss(model, {**given, "loss_scale": torch.tensor([[0.0, 1.0, 0.5, 1.0]])})


def test_trainings_that_are_no_fine_tuning_are_refused(monkeypatch):
    trainer = SimpleNamespace(args=SimpleNamespace(rlhf_type="dpo"), template=None)
    with pytest.raises(ValueError, match=r"^task_type: dpo is not trained by the loss of labelled tokens"):
        refusals.refuse(settings.SSTokenConfig(), trainer)
    megatron = startup.refuse_settings(type("BaseMegatronTrainer", (), {}))
    megatron()
    monkeypatch.setenv("SSTOKEN", "{}")
    with pytest.raises(ValueError, match=r"^SSTOKEN: Megatron has a trainer of its own"):
        megatron()


def test_the_documented_example_runs(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_llama, "outputs/swift/data.jsonl")
    told = run_command(BASH, "-c", block("ms-swift", "bash").rstrip() + " --max_steps 1").stdout
    assert told.count(f"{ACTIVE} 60% of each sample's response tokens") == 1
    assert "the end of a turn (<|im_end|>) is always kept" in told
    assert Path("outputs/swift/sstoken/report.html").exists()


def test_the_example_configuration_runs_on_two_ranks(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_llama, "outputs/cpu-demo/data.jsonl")
    command = block("ms-swift", "sh").splitlines()[-1]
    told = run_command(BASH, "-c", f"{command} --max_steps 1 --ddp_backend gloo", NPROC_PER_NODE="2").stdout
    assert told.count(f"{ACTIVE} 60% of each sample's response tokens") == 1


def test_the_documentation_shows_the_block_of_the_example():
    example = yaml.safe_load((ROOT / "example_configs" / "swift" / "sft.yaml").read_text())
    shown = yaml.safe_load(block("ms-swift", "yaml"))
    assert shown["callbacks"] == example["callbacks"]
    assert shown["ENV"]["SSTOKEN"].items() <= example["ENV"]["SSTOKEN"].items()


def test_every_refusal_is_documented():
    page = (ROOT / "docs" / "trainers.md").read_text().split("\n## ms-swift\n")[1]
    assert all(f"`{refusal.key}" in page for refusal in refusals.REFUSALS)


def test_another_release_is_named_with_the_supported_one(monkeypatch):
    monkeypatch.delenv("SSTOKEN_ANY_MS_SWIFT", raising=False)
    for installed in ("4.5.9", "4.7.0.dev0", "5.0", "main"):
        monkeypatch.setattr(versions, "version", lambda package, installed=installed: installed)
        with pytest.raises(ValueError, match=rf"^ms-swift: sstoken runs on ms-swift 4\.6, and this is {installed};"):
            releases.refuse_unsupported()
    monkeypatch.setattr(versions, "version", lambda package: "4.6.3")
    releases.refuse_unsupported()


def test_the_file_for_external_plugins_is_printed():
    printed = run_command("python", "-m", "sstoken_plugin.swift").stdout.strip()
    assert printed == str(ROOT / "sstoken_plugin" / "swift" / "register.py")
