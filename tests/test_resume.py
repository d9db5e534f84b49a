"""A run that was stopped and resumed is the run that was not, bit for bit."""

import errno
import gzip
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import report_callback, write
from damage import cut, edited, flipped, gone, in_its_place, written
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sstoken_plugin.base.files import write_bytes
from sstoken_plugin.report.parts import CountsPart, MomentsPart
from sstoken_plugin.training import checkpoint
from sstoken_plugin.training.metrics import Totals
from sstoken_plugin.training.monitor import SelectionMonitor
from sstoken_plugin.training.parts import HistoryPart, MonitorPart, Saved, TotalsPart, WarningsPart

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
        assert not resumed.trainer.sstoken.warnings


@pytest.mark.parametrize("changes", [{}, FULL], ids=["lora", "full"])
def test_losses_that_a_run_keeps_by_itself_survive(config, train, kept, forwards, changes):
    settings = {
        **config, **changes, "max_steps": 12, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20,
        "sstoken": {"warmup_ratio": 0.25, "report": False},
    }  # fmt: skip
    whole = train(settings)
    whole_kept = kept()
    assert sum(forwards) == 24
    forwards.clear()
    resumed = train({**settings, "resume_from_checkpoint": f"{settings['output_dir']}/checkpoint-7"})
    assert not forwards
    assert kept() == whole_kept[2 * 7 :]
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name
    assert not resumed.trainer.sstoken.warnings


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
    assert resumed.trainer.sstoken.warnings == whole.trainer.sstoken.warnings


def test_a_second_training_of_a_trainer_has_no_warnings_of_the_first(config, train):
    run = train({**config, "max_steps": 1, "sstoken": WARMUP})
    run.trainer.sstoken.warn(["ssToken: something of the first training."])
    run.trainer.train()
    assert run.trainer.sstoken.warnings == []


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
    (warning,) = run.trainer.sstoken.warnings
    assert str(start) in warning
    assert "made without the plugin" in warning
    assert assumed in warning
    assert run.trainer.state.global_step == 4


def moments(change_moment):
    def change(folder):
        file = folder / "moments.json.gz"
        found = json.loads(gzip.decompress(file.read_bytes()))
        found["moments"] = [change_moment(moment) for moment in found["moments"]]
        file.write_bytes(gzip.compress(json.dumps(found).encode()))

    return change


def record(**changes):
    """Change every record of every moment; a function is given the record."""

    def changed(one):
        return {**one, **{name: value(one) if callable(value) else value for name, value in changes.items()}}

    return moments(lambda moment: {**moment, "records": [changed(one) for one in moment["records"]]})


WATCHED = {"rule": "sstoken", "dropped": [], "leading": [], "raised": []}
# What is done to the folder, and what the warning says; "" where there is none.
DAMAGE = {
    "no text": (written("state.json", b"{"), "metrics and warnings (state.json"),
    "text of another kind": (written("state.json", b"[1]"), "metrics and warnings (state.json"),
    "an empty object": (written("state.json", b"{}"), "metrics and warnings (state.json"),
    "text that is no UTF-8": (written("state.json", b"\xff\xfe"), "metrics and warnings (state.json"),
    "no state.json": (gone("state.json"), "metrics and warnings (state.json"),
    "an empty monitor": (edited("state.json", monitor={}), "what is watched for warnings"),
    "a monitor of text": (edited("state.json", monitor="x"), "what is watched for warnings"),
    "a monitor of other things": (edited("state.json", monitor={**WATCHED, "dropped": ["a"]}), "what is watched"),
    "a monitor of huge numbers": (edited("state.json", monitor={**WATCHED, "dropped": [10**400]}), "what is watched"),
    "text without an end": (written("state.json", b"[" * 200_000), "metrics and warnings (state.json"),
    "moments without an end": (written("moments.json.gz", gzip.compress(b"[" * 200_000)), "the page's samples"),
    "no totals": (edited("state.json", totals=None), "the metrics since the last log line"),
    "totals of text": (edited("state.json", totals={"kept": "many"}), "the metrics since the last log line"),
    "totals that are no numbers": (edited("state.json", totals={"kept": math.nan}), "the metrics since the last"),
    "warnings of numbers": (edited("state.json", warnings=[1]), "earlier warnings"),
    "a field to come": (edited("state.json", future=1), ""),
    "a bit of the moments": (flipped("moments.json.gz", 60), "the page's samples"),
    "half of the moments": (cut("moments.json.gz", 200), "the page's samples"),
    "no moments": (gone("moments.json.gz"), "the page's samples"),
    "moments of a release to come": (moments(lambda moment: {**moment, "new": 1}), ""),
    "a moment without its rule": (
        moments(lambda moment: {name: value for name, value in moment.items() if name != "rule"}),
        "the page's samples",
    ),
    "records of other lengths": (record(tokens=["a"]), "the page's samples"),
    "a ratio that is no number": (moments(lambda moment: {**moment, "ratio": math.nan}), "the page's samples"),
    "tokens of no vocabulary": (record(labels=lambda one: [10**30] * len(one["input_ids"])), "the page's samples"),
    "records of other kinds": (record(score="high"), "the page's samples"),
    "a record without its place": (record(sample=None), "the page's samples"),
    "half of the page": (cut("page.json.gz", 200), ""),
    "no counts": (gone("kept.safetensors"), "the page's tables"),
    "counts that are cut": (cut("kept.safetensors", 40), "the page's tables"),
    "counts that are a folder": (in_its_place("kept.safetensors"), "the page's tables"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """What is done once for all damages: a run with everything that a checkpoint can hold."""
    return tmp_path_factory.mktemp("stopped")


def stopped_run(config, train, stopped):
    """Return the settings of the run, and its checkpoint."""
    settings = {
        **config, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 4,
        "sstoken": {"warmup_ratio": 0.25, "history": "ema", "history_ema_decay": 0.7},
    }  # fmt: skip
    start = stopped / "out" / "checkpoint-2"
    if not start.exists():
        train({**settings, "output_dir": str(stopped / "out")})
    return settings, start


def resumed_after(change, config, train, tmp_path, stopped):
    """Resume from the checkpoint of a run whose folder is changed before."""
    settings, start = stopped_run(config, train, stopped)
    again = tmp_path / "checkpoint-2"
    shutil.copytree(start, again)
    change(again / "sstoken")
    return train({**settings, "output_dir": str(tmp_path / "again"), "resume_from_checkpoint": str(again)})


def parts():
    """Return the parts of a run, but for its history."""
    session = SimpleNamespace(is_first_rank=True)
    counts = SimpleNamespace(restore=lambda rule, counts: None)
    trajectory = SimpleNamespace(moments=[])
    return [
        TotalsPart(Totals(), dict, "cpu", is_first=True), MonitorPart(SelectionMonitor()), WarningsPart([]),
        MomentsPart(trajectory), CountsPart(counts, session),
    ]  # fmt: skip


def fault_of(part, found):
    """Return why a part does not take over what was read, or ""."""
    try:
        part.restore(found.parts.get(part.name))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_costs_its_own_part_alone(config, train, tmp_path, stopped, damage):
    change, words = DAMAGE[damage]
    _, start = stopped_run(config, train, stopped)
    whole = checkpoint.read(start)
    again = tmp_path / "checkpoint-2"
    shutil.copytree(start, again)
    change(again / "sstoken")
    found = checkpoint.read(again)
    assert found.parts["history"].tensors.keys() == whole.parts["history"].tensors.keys(), "its own file is whole"
    assert "history" not in found.lost
    told = [f"metrics and warnings ({found.fault})"] if found.fault else []
    told += [f"{part.words} ({why})" for part in parts() if (why := found.lost.get(part.name) or fault_of(part, found))]
    assert words in " ".join(told)
    assert len(told) == bool(words)


@pytest.mark.parametrize(
    "damage",
    [
        "no text",
        "an empty monitor",
        "half of the moments",
        "records of other kinds",
        "no counts",
        "a field to come",
        "half of the page",
    ],
)
def test_a_run_goes_on_without_the_part_and_with_its_history(config, train, tmp_path, stopped, damage):
    change, words = DAMAGE[damage]
    run = resumed_after(change, config, train, tmp_path, stopped)
    told = " ".join(run.trainer.sstoken.warnings)
    assert words in told
    assert bool(told) == bool(words)
    assert "begins anew at the weights" not in told
    assert run.trainer.state.global_step == 4
    assert (tmp_path / "again" / "sstoken" / "report.html").exists()


def of_another_run(folder):
    """Leave the folder beside the checkpoint of a run without the plugin."""
    file = folder.parent / "trainer_state.json"
    found = json.loads(file.read_text())
    del found["stateful_callbacks"]["sstoken"]
    file.write_text(json.dumps(found))


def weights(change):
    """Change every tensor of the history."""

    def changed(folder):
        file = folder / "history.safetensors"
        with safe_open(file, "pt") as opened:
            head = opened.metadata()
        save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file, metadata=head)

    return changed


def no_folder(folder):
    """Put a file in its place."""
    shutil.rmtree(folder)
    folder.write_text("")


# What is done to the folder, and what the warning says.
FOREIGN = {
    "a history that is cut": (cut("history.safetensors", 5), "history.safetensors"),
    "a bit of the history's header": (flipped("history.safetensors", 12), "history.safetensors"),
    "weights that are no numbers": (weights(lambda tensor: tensor * torch.nan), "no finite numbers"),
    "weights of another kind": (weights(lambda tensor: tensor.to(torch.int8)), "no finite numbers"),
    "a history that is gone": (gone("history.safetensors"), "history.safetensors"),
    "another history": (edited("state.json", history={"kind": "snapshot"}), "made with sstoken.history: snapshot"),
    "another run": (of_another_run, "left by another run"),
    # A save that came to no end, over the checkpoint of an earlier one.
    "a cut save": (edited("state.json", mark="another"), "a save that was cut"),
    "a version to come": (edited("state.json", format=99), "another version"),
    "version 0.1": (edited("state.json", format=...), "version 0.1"),
}


@pytest.mark.parametrize("damage", FOREIGN)
def test_a_history_that_does_not_serve_or_belong_begins_anew(config, train, tmp_path, stopped, damage):
    change, words = FOREIGN[damage]
    run = resumed_after(change, config, train, tmp_path, stopped)
    (warning,) = run.trainer.sstoken.warnings
    assert words in warning
    assert "begins anew at the weights of the checkpoint" in warning


def test_samples_that_the_data_set_has_no_longer_are_told(config, train, tmp_path, stopped, caplog):
    run = resumed_after(record(sample=10**6), config, train, tmp_path, stopped)
    assert "the checkpoint's samples are not those of this data set" in caplog.text
    assert "step 2 of 4" not in [moment.label for moment in report_callback(run.trainer).trajectory.moments]


def test_a_file_in_place_of_the_folder_is_told_part_by_part(config, train, tmp_path, stopped):
    run = resumed_after(no_folder, config, train, tmp_path, stopped)
    metrics, history = run.trainer.sstoken.warnings
    assert "metrics and warnings (state.json" in metrics
    assert "there are no weights of it" in history
    assert "begins anew at the weights of the checkpoint" in history


COUNTS = torch.tensor([[3, 1], [4, 0]])


@pytest.mark.parametrize("part", ["moments.json.gz", "kept.safetensors"])
def test_what_is_only_for_the_page_and_cannot_be_written_is_left_out(part, tmp_path):
    mark = checkpoint.new_mark()
    (tmp_path / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"sstoken": mark}}))
    # Nothing can be written where a folder stands.
    (tmp_path / "sstoken" / part).mkdir(parents=True)
    weights = {"w": torch.ones(3)}
    states = {
        "totals": Saved({"kept": 1.0}), "history": Saved({"kind": "ema"}, weights), "moments": Saved(document=[]),
        "kept": Saved({"rule": "sstoken"}, {"counts": COUNTS}),
    }  # fmt: skip
    (fault,) = checkpoint.write(tmp_path, of_parts(states), mark)
    assert part in fault
    found = checkpoint.read(tmp_path)
    assert (found.fault, found.lost, found.parts["totals"].facts) == ("", {}, {"kept": 1.0})
    assert torch.equal(found.parts["history"].tensors["w"], weights["w"])
    assert ("moments" in found.parts) == (part != "moments.json.gz")
    assert ("kept" in found.parts) == (part != "kept.safetensors")


def of_parts(states):
    """Put states to the parts of a run, of which only those for the page are spare."""
    kinds = (TotalsPart, HistoryPart, MomentsPart, CountsPart)
    return [(kind.__new__(kind), states[kind.name]) for kind in kinds if kind.name in states]


@pytest.mark.parametrize("part", ["history.safetensors", "state.json"])
def test_where_the_rest_cannot_be_written_the_run_stops_with_a_sentence(part, tmp_path):
    (tmp_path / "sstoken" / part).mkdir(parents=True)
    states = of_parts({"history": Saved({"kind": "ema"}, {"w": torch.ones(3)})})
    with pytest.raises(OSError, match=rf"^output_dir: {tmp_path / 'sstoken'} cannot be written .*; make room there"):
        checkpoint.write(tmp_path, states, checkpoint.new_mark())


def test_a_run_goes_on_where_the_samples_of_the_page_do_not_fit_on_the_disk(config, train, tmp_path, monkeypatch):
    def no_room(content, file):
        if file.name == "moments.json.gz":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_bytes(content, file)

    monkeypatch.setattr(checkpoint, "write_bytes", no_room)
    run = train({**config, "save_strategy": "steps", "save_steps": 2, "max_steps": 2, "sstoken": {"warmup_ratio": 0.5}})
    (warning,) = run.trainer.sstoken.warnings
    assert "checkpoint-2 is without the page's samples (moments.json.gz: OSError: " in warning
    assert (Path(config["output_dir"]) / "adapter_model.safetensors").exists()


def test_a_run_without_the_plugin_into_the_same_folder_leaves_nothing_to_believe(config, train, tmp_path):
    saving = {**config, "save_strategy": "steps", "save_steps": 2}
    train({**saving, "sstoken": {**WARMUP, "history": "ema"}})
    train({**saving, "plugins": [], "sstoken": None})
    start = Path(config["output_dir"]) / "checkpoint-2"
    assert (start / "sstoken").exists()
    run = train({
        **saving, "output_dir": str(tmp_path / "again"), "resume_from_checkpoint": str(start),
        "sstoken": {**WARMUP, "history": "ema"},
    })  # fmt: skip
    (warning,) = run.trainer.sstoken.warnings
    assert "left by another run" in warning


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
    (warning,) = run.trainer.sstoken.warnings
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
    own, killed = (found.parts["history"].tensors for found in (state, killed_state))
    assert all(torch.equal(own[name], killed[name]) for name in own)
