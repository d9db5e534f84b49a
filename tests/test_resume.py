"""A run that was stopped and resumed is the run that was not, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write

from sstoken_plugin import checkpoint

FULL = {"adapter": None, "learning_rate": 0.005}
# The warm-up is the first 3 of 6 steps.
WARMUP = {"warmup_ratio": 0.5, "report": False}


@pytest.fixture
def kept(steps):
    """What was kept at each micro-batch so far; the list is emptied."""

    def take():
        found = [step.kept.tolist() for step, _ in steps]
        steps.clear()
        return found

    return take


def without_speed(lines):
    """Log lines without what no two runs share."""
    return [{key: value for key, value in line.items() if "per_sec" not in key} for line in lines]


@pytest.mark.parametrize(
    ("changes", "block"),
    [
        ({}, {}),
        ({"lora_dropout": 0.2}, {"history": "ema", "history_ema_decay": 0.7}),
        ({}, {"history": "snapshot", "history_update_steps": 2}),
        ({"lora_model_dir": "ADAPTER"}, {}),
        ({}, {"history": "ADAPTER"}),
        ({}, {"selector": "random"}),
        ({}, {"history_cache": "CACHE"}),
        (FULL, {}),
        (FULL, {"history": "ema", "history_ema_decay": 0.7}),
        (FULL, {"history": "snapshot", "history_update_steps": 2}),
        (FULL, {"history_cache": "CACHE"}),
    ],
    ids=lambda value: ", ".join(f"{key} {entry}" for key, entry in value.items()) or "default",
)
def test_a_resumed_run_equals_one_that_was_not_stopped(config, train, kept, tmp_path, changes, block):
    names = {"CACHE": str(tmp_path / "cache"), "ADAPTER": str(tmp_path / "first")}
    changes, block = ({key: names.get(value, value) for key, value in part.items()} for part in (changes, block))
    if names["ADAPTER"] in (*changes.values(), *block.values()):
        train({**config, "plugins": [], "output_dir": names["ADAPTER"]})
    settings = {
        **config, **changes, "max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20,
        "sstoken": {**WARMUP, **block},
    }  # fmt: skip
    whole = train(settings)
    whole_kept = kept()
    checkpoints = Path(settings["output_dir"])
    for step in (2, 4):
        if "history_cache" in block:
            # The stopped run had the first losses only.
            shutil.rmtree(block["history_cache"])
        shutil.copytree(checkpoints / f"checkpoint-{step}", tmp_path / f"from-{step}")
        resumed = train(
            {
                **settings,
                "output_dir": str(tmp_path / f"out-{step}"),
                "resume_from_checkpoint": str(tmp_path / f"from-{step}"),
            }
        )
        assert kept() == whole_kept[2 * step :]
        assert without_speed(resumed.lines) == without_speed(whole.lines)
        assert resumed.weights.keys() == whole.weights.keys()
        for name, weight in whole.weights.items():
            assert torch.equal(resumed.weights[name], weight), name
        assert not resumed.trainer.selection_warnings


def test_metrics_between_two_log_lines_and_warnings_survive(config, train, tmp_path):
    """The run stops after step 2, and logs every 4 steps."""
    question = {"messages": [{"role": "assistant", "content": "No prompt at all here."}]}
    data = tmp_path / "promptless.jsonl"
    data.write_text(Path(config["datasets"][0]["path"]).read_text() + "\n" + json.dumps(question))
    settings = {
        **config, "max_steps": 8, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2,
        "sstoken": {**WARMUP, "history": "ema"}, "datasets": [{**config["datasets"][0], "path": str(data)}],
    }  # fmt: skip
    whole = train(settings)
    resumed = train(
        {
            **settings,
            "output_dir": str(tmp_path / "again"),
            "resume_from_checkpoint": f"{settings['output_dir']}/checkpoint-2",
        }
    )
    ours = [{key: value for key, value in line.items() if "sstoken/" in key} for line in whole.lines]
    assert len(ours) == 2
    assert ours == [{key: value for key, value in line.items() if "sstoken/" in key} for line in resumed.lines]
    assert resumed.trainer.selection_warnings == whole.trainer.selection_warnings


@pytest.mark.parametrize(
    ("block", "assumed"),
    [
        ({}, "the one that a new run would have"),
        ({"history": "ema"}, "begins anew at the weights of the checkpoint"),
    ],
    ids=["initial", "ema"],
)
def test_a_checkpoint_made_without_the_plugin_resumes_with_a_warning(config, train, tmp_path, block, assumed):
    saving = {"save_strategy": "steps", "save_steps": 2}
    train({**config, **saving, "plugins": []})
    start = Path(config["output_dir"]) / "checkpoint-2"
    run = train(
        {
            **config,
            "output_dir": str(tmp_path / "again"),
            "resume_from_checkpoint": str(start),
            "sstoken": {**WARMUP, **block},
        }
    )
    (warning,) = run.trainer.selection_warnings
    assert str(start) in warning
    assert "made without the plugin" in warning
    assert assumed in warning
    assert run.trainer.state.global_step == 4


@pytest.mark.parametrize("damage", ["text", "tensors", "another history"])
def test_a_state_that_does_not_serve_is_named_and_training_goes_on(config, train, tmp_path, damage):
    settings = {**config, "save_strategy": "steps", "save_steps": 2, "sstoken": {**WARMUP, "history": "ema"}}
    train(settings)
    start = Path(config["output_dir"]) / "checkpoint-2"
    changes = {}
    if damage == "text":
        (start / "sstoken" / "state.json").write_text("{")
    elif damage == "tensors":
        (start / "sstoken" / "history.safetensors").write_bytes(b"short")
    else:
        changes = {"history": "snapshot"}
    run = train(
        {
            **settings,
            "output_dir": str(tmp_path / "again"),
            "resume_from_checkpoint": str(start),
            "sstoken": {**settings["sstoken"], **changes},
        }
    )
    (warning,) = run.trainer.selection_warnings
    assert "begins anew at the weights of the checkpoint" in warning
    assert ("made with sstoken.history: ema" in warning) == (damage == "another history")


def test_another_base_model_on_resume_is_told(config, train, tmp_path, tiny_llama):
    settings = {**config, **FULL, "save_strategy": "steps", "save_steps": 2, "sstoken": WARMUP}
    train(settings)
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.model.norm.weight *= 1.5
    model.save_pretrained(other)
    run = train(
        {
            **settings,
            "base_model": str(other),
            "output_dir": str(tmp_path / "again"),
            "resume_from_checkpoint": f"{settings['output_dir']}/checkpoint-2",
        }
    )
    (warning,) = run.trainer.selection_warnings
    assert "not those that the resumed run had" in warning


def test_a_killed_process_resumes_to_the_same_weights(config, train, tmp_path):
    """Kill -9 in the middle of real training processes, as Axolotl is launched, and resume until done."""
    from safetensors.torch import load_file

    settings = {
        **config, "max_steps": 12, "save_strategy": "steps", "save_steps": 1,
        "sstoken": {**WARMUP, "history": "ema", "history_ema_decay": 0.7},
    }  # fmt: skip
    # Axolotl draws the weights of a new adapter before it seeds: no two processes have the same.
    first = str(tmp_path / "first")
    train({**config, "plugins": [], "max_steps": 1, "output_dir": first})
    settings["lora_model_dir"] = first
    results = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        file = write({**settings, "output_dir": str(folder / "out")}, folder)
        if name == "killed":
            process = subprocess.Popen(
                [sys.executable, "-m", "axolotl.cli.train", str(file)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
            assert process.stdout is not None
            lines = 0
            for line in process.stdout:
                lines += "sstoken/gamma" in line
                if lines == 5:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            assert process.wait() == -signal.SIGKILL
            assert not (folder / "out" / "checkpoint-12").exists()
            # A checkpoint is whole once Trainer's own state is there, and then ours is.
            whole = [path.parent for path in (folder / "out").glob("checkpoint-*/trainer_state.json")]
            start = max(whole, key=lambda path: int(path.name.split("-")[1]))
            assert checkpoint.read(start) is not None
            write({**settings, "output_dir": str(folder / "out"), "resume_from_checkpoint": str(start)}, folder)
        subprocess.run([sys.executable, "-m", "axolotl.cli.train", str(file)], capture_output=True, check=True)
        last = folder / "out" / "checkpoint-12"
        lines = json.loads((last / "trainer_state.json").read_text())["log_history"]
        results[name] = (
            load_file(folder / "out" / "adapter_model.safetensors"),
            without_speed(lines),
            checkpoint.read(last),
        )
    (weights, lines, state), (killed_weights, killed_lines, killed_state) = results.values()
    assert killed_lines == lines
    assert all(torch.equal(weights[name], killed_weights[name]) for name in weights)
    assert all(torch.equal(state.tensors[name], killed_state.tensors[name]) for name in state.tensors)
