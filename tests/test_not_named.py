"""Installed and not named: a run is the one that it would be without the package."""

import json
import re
import subprocess
import sys

import pytest
from conftest import write
from material import run_command
from safetensors.torch import load_file

PREFERENCES = [
    {
        "messages": [{"role": "user", "content": f"Name number {number}."}],
        "chosen": {"role": "assistant", "content": "one two three"},
        "rejected": {"role": "assistant", "content": "four"},
    }
    for number in range(8)
]
YAMLS = {
    "no plugins": {},
    "another plugin": {"plugins": ["axolotl.integrations.grokfast.GrokfastPlugin"]},
    "preferences": {"rl": "dpo"},
}


def outcome(python, config, folder):
    """Run the training in a process of its own; return its log, losses and weights."""
    folder.mkdir()
    config = {**config, "output_dir": str(folder / "out"), "dataset_prepared_path": str(folder / "prepared")}
    command = [python, "-m", "axolotl.cli.train", str(write(config, folder))]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, timeout=900)
    assert run.returncode == 0, run.stdout[-5000:]
    # What a logger wrote, without times, durations, folders and the progress bar that may stand on the same line.
    lines = re.findall(r"\[(?:INFO|WARNING|ERROR)\].*$", run.stdout, re.MULTILINE)
    log = [re.sub(r"\d+|/\S+", "", line) for line in lines]
    checkpoint = folder / "out" / "checkpoint-2"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    return log, losses, load_file(checkpoint / "model.safetensors"), run.stdout


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_that_does_not_name_the_plugin_trains_as_without_the_package(
    without_the_package, config, tmp_path, name
):
    del config["plugins"]
    # All weights, because up to 0.20 Axolotl draws those of an adapter before it seeds: no two runs start alike.
    config |= {"adapter": None, "learning_rate": 0.001, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    config |= YAMLS[name]
    if "rl" in config:
        file = tmp_path / "preferences.jsonl"
        file.write_text("\n".join(map(json.dumps, PREFERENCES)))
        config["datasets"] = [{"path": str(file), "type": "chat_template.default", "field_messages": "messages"}]
        config["datasets"][0] |= {"field_chosen": "chosen", "field_rejected": "rejected"}
    with_log, with_losses, with_weights, printed = outcome(sys.executable, config, tmp_path / "with")
    without_log, without_losses, without_weights, _ = outcome(without_the_package, config, tmp_path / "without")
    assert with_losses == without_losses
    assert len(with_losses) == 2
    assert with_weights.keys() == without_weights.keys()
    assert all((with_weights[key] == weight).all() for key, weight in without_weights.items())
    assert with_log == without_log
    assert len(with_log) > 10
    assert "sstoken" not in printed.lower()


def test_a_yaml_with_keys_that_only_the_plugin_would_refuse_is_read_as_without_it(config, tmp_path):
    code = f"""
from axolotl.cli.config import load_cfg
cfg = load_cfg({str(write({**config, "plugins": None, "trainer_cls": "my.Trainer", "ss_token": 1}, tmp_path))!r})
print("READ", cfg.trainer_cls, "sstoken" in cfg)
import sys
print("LOADED", [name for name in sys.modules if name.startswith("sstoken_plugin")])
"""
    printed = run_command("python", "-c", code).stdout
    assert "READ my.Trainer False" in printed
    assert "LOADED []" in printed
