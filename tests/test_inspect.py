"""`axolotl sstoken-inspect`: the same selection as training, for the untrained model and for an adapter."""

import errno
import json
import math
import os
import re
import subprocess
import sys
import weakref

import pytest
import torch
from click.testing import CliRunner
from conftest import AXOLOTL, load, write
from material import run_command, spread_over_gpus
from safetensors.torch import load_file

from sstoken_plugin.axolotl import inspection as axolotl_inspection
from sstoken_plugin.report import inspection

FIELDS = {
    "sample",
    "input_ids",
    "tokens",
    "response",
    "current_nll",
    "history_nll",
    "rel",
    "attention",
    "score",
    "selected",
}

SINCE_0_18 = pytest.mark.skipif(AXOLOTL < (0, 18), reason="Axolotl takes no commands yet")


@pytest.fixture
def inspect(tmp_path):
    def run(config, *arguments):
        from axolotl.integrations.base import PluginManager

        from sstoken_plugin.axolotl.cli import inspect_command

        PluginManager.get_instance().plugins.clear()
        out = tmp_path / "inspection"
        result = CliRunner().invoke(inspect_command, [str(write(config, tmp_path)), "--out", str(out), *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        file = out / "selections.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return result, records

    return run


def check(record, ratio, keep_eos=True):
    """The record's own numbers lead to its selection."""
    places = [place for place, response in enumerate(record["response"]) if response]
    ends = {p for p in places if record["input_ids"][p] == 2} if keep_eos else set()
    k = max(math.ceil(ratio * len(places)), min(2 * len(ends), len(places)))
    assert sum(record["selected"]) == k
    best = sorted(places, key=lambda p: (p not in ends, -record["score"][p]))[:k]
    assert {p for p, selected in enumerate(record["selected"]) if selected} == set(best)
    for name in ("current_nll", "history_nll", "rel", "attention", "score"):
        assert [p for p, value in enumerate(record[name]) if value is not None] == places


def test_the_untrained_model_has_no_rel(config, inspect, tmp_path):
    result, records = inspect(config, "--samples", "5")
    assert result.exit_code == 0, result.output
    assert "ssToken is active" in result.output
    assert "REL is zero at every token" in result.output
    assert "REL is zero at every token" in (tmp_path / "inspection" / "inspect.html").read_text()
    assert [record["sample"] for record in records] == list(range(5))
    for record in records:
        assert record.keys() == FIELDS
        assert len({len(record[name]) for name in FIELDS - {"sample"}}) == 1
        check(record, 0.6)
        assert all(value in (None, 0) for value in record["rel"])
        assert all(
            s is None or s == pytest.approx(a / 2) for s, a in zip(record["score"], record["attention"], strict=True)
        )


def test_an_adapter_folder_is_scored_as_its_model(config, train, inspect, tmp_path):
    run = train({**config, "save_strategy": "steps", "save_steps": 4})
    adapter = tmp_path / "out" / "checkpoint-4"
    settings = {"sstoken": {"ratio": 0.5, "gamma": 0.8}}
    _, records = inspect({**config, **settings}, "--adapter", str(adapter), "--samples", "3")
    run.model.eval()
    for record in records:
        check(record, 0.5)
        ids = torch.tensor([record["input_ids"]])
        with torch.no_grad():
            nll = torch.nn.functional.cross_entropy(run.model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        for place, value in enumerate(record["current_nll"]):
            if value is not None:
                assert value == pytest.approx(nll[place - 1].item(), abs=1e-4)
                assert record["rel"][place] == pytest.approx(record["history_nll"][place] - value, abs=1e-5)


@pytest.mark.parametrize("history", ["ema", "snapshot"])
def test_a_checkpoint_is_scored_against_the_history_that_it_holds(config, train, inspect, tmp_path, history):
    block = {"history": history, "history_ema_decay": 0.7, "history_update_steps": 3}
    settings = {**config, "save_strategy": "steps", "save_steps": 4, "sstoken": block}
    run = train(settings)
    checkpoint = tmp_path / "out" / "checkpoint-4"
    _, records = inspect(settings, "--adapter", str(checkpoint), "--samples", "3")
    past = load_file(checkpoint / "sstoken" / "history.safetensors")
    run.model.load_state_dict(past, strict=False)
    run.model.eval()
    for record in records:
        ids = torch.tensor([record["input_ids"]])
        with torch.no_grad():
            nll = torch.nn.functional.cross_entropy(run.model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        for place, value in enumerate(record["history_nll"]):
            if value is not None:
                assert value == pytest.approx(nll[place - 1].item(), abs=1e-4)


def test_an_adapter_that_holds_no_history_of_the_kind_asked_for_is_refused(config, train, inspect, tmp_path):
    train({**config, "save_strategy": "steps", "save_steps": 4})
    result, _ = inspect({**config, "sstoken": {"history": "ema"}}, "--adapter", str(tmp_path / "out" / "checkpoint-4"))
    assert result.exit_code == 1
    assert "sstoken.history: ema cannot be told from" in result.output


def test_the_second_of_two_trainings_is_scored_against_the_first(config, train, inspect, tmp_path):
    first = str(tmp_path / "first")
    train({**config, "plugins": [], "output_dir": first})
    settings = {**config, "lora_model_dir": first}
    run = train(settings)
    _, untrained = inspect(settings, "--samples", "2")
    assert all(value in (None, 0) for record in untrained for value in record["rel"])
    _, records = inspect(settings, "--samples", "2", "--adapter", str(tmp_path / "out"))
    for record, start in zip(records, untrained, strict=True):
        assert record["history_nll"] == pytest.approx(start["current_nll"], abs=1e-4)
        assert record["current_nll"] != start["current_nll"]
    assert run.trainer.state.global_step == 4


def test_that_rel_is_zero_is_said_only_where_it_would_rank(config, inspect, tmp_path):
    result, _ = inspect(config, "--samples", "2", "--sstoken.gamma", "0")
    assert "REL is zero" not in result.output
    assert "REL is zero" not in (tmp_path / "inspection" / "inspect.html").read_text()


@pytest.mark.parametrize("block", [{"ratio": 1}, {"warmup_ratio": 1}], ids=str)
def test_that_rel_is_zero_is_not_said_where_all_is_kept(config, inspect, tmp_path, block):
    options = [part for key, value in block.items() for part in (f"--sstoken.{key}", str(value))]
    result, _ = inspect(config, "--samples", "2", *options)
    assert "REL is zero" not in result.output
    assert "every one, as in plain training" in (tmp_path / "inspection" / "inspect.html").read_text()


@pytest.mark.parametrize("block", [{}, {"history": "ema", "history_ema_decay": 0.5, "warmup_ratio": 0.5}], ids=repr)
def test_the_first_steps_are_those_of_the_run(config, train, inspect, tmp_path, block):
    from axolotl.utils import tee
    from transformers import set_seed

    config["sstoken"] = {"gamma": 0.9, **block}
    train({**config, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5})
    # As at the end of the training's process: until then Axolotl writes whatever is said to the training's log. Its
    # streams are held meanwhile, for freed under the lock of closing they would wait for it.
    streams = sys.stdout, sys.stderr
    tee.close_debug_log()
    del streams
    _, expected = inspect(config, "--samples", "4", "--adapter", str(tmp_path / "out" / "checkpoint-2"))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    # As for the training: up to 0.20 Axolotl draws the weights of an adapter before it seeds.
    set_seed(0)
    result, records = inspect(config, "--samples", "4", "--after", "2")
    assert result.exit_code == 0, result.output
    assert "after 2 of 4 steps: 4 samples" in result.output
    assert "REL is zero" not in result.output
    for record, other in zip(records, expected, strict=True):
        assert record["selected"] == other["selected"]
        assert record["history_nll"] == pytest.approx(other["history_nll"], abs=1e-4)
        assert record["current_nll"] == pytest.approx(other["current_nll"], abs=1e-4)
    # Nothing of the training is there but what the inspection writes.
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


def test_the_first_steps_of_a_shorter_run_are_all_of_it(config, inspect):
    result, _ = inspect({**config, "max_steps": 1}, "--samples", "2", "--after", "20")
    assert "after 1 of 1 steps" in result.output


def test_first_steps_without_a_page_do_not_speak_of_its_settings(config, tmp_path):
    from sstoken_plugin.axolotl.trial import without_traces
    from sstoken_plugin.selection.config import SSTokenConfig

    block = {"ratio": 0.4, "report_samples": 3, "report_seconds": 9.0, "report_upload": False}
    found = without_traces(load({**config, "sstoken": block}, tmp_path), tmp_path)
    settings = SSTokenConfig.from_block(found.sstoken)
    assert (settings.ratio, settings.report) == (0.4, False)
    assert settings.keys_without_effect() == []


def test_first_steps_and_an_adapter_are_one_too_many(config, inspect, tmp_path):
    result, _ = inspect(config, "--after", "2", "--adapter", str(tmp_path))
    assert result.exit_code == 1
    assert "--after trains a model of its own" in result.output


@pytest.mark.parametrize("key", ["deepspeed", "fsdp_config", "use_ray"])
def test_first_steps_of_several_processes_are_refused(key):
    from sstoken_plugin.axolotl.trial import refuse_unfit

    with pytest.raises(ValueError, match=f"--after trains in this process alone, and {key} asks"):
        refuse_unfit({key: True})
    refuse_unfit({})


def test_the_plan_is_what_is_selected(config, inspect):
    """Of a data set that is scored whole, the numbers before are those after."""
    config["sstoken"] = {"gamma": 0.0, "ratio": 0.4}
    result, records = inspect(config, "--samples", "100", "--show", "0")
    responses, kept = (sum(sum(record[name]) for record in records) for name in ("response", "selected"))
    tokens = sum(len(record["tokens"]) for record in records)
    # 288 of 1,280 are 22.5 %: Python's own format would round the half to the even 22.
    assert (responses, tokens) == (288, 1280)
    assert "data     24 samples, 288 response tokens (23% of 1,280)" in result.output
    assert f"kept     {kept} response tokens" in result.output
    assert "steps    4, 0.7 epochs\n" in result.output
    # As a terminal has it: a progress bar is drawn over itself, and how often is a matter of time.
    assert result.output.count("\n") < 20


def test_a_yaml_without_the_plugin_can_be_inspected_and_overridden(config, inspect):
    _, records = inspect({**config, "plugins": None}, "--samples", "2", "--sstoken.ratio=0.3", "--sstoken.gamma", "0")
    for record in records:
        check(record, 0.3)


def test_bad_input_is_one_sentence_and_no_traceback(config, inspect):
    result, _ = inspect({**config, "sstoken": {"rato": 0.3}})
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "sstoken." in line]
    assert line.startswith("Error: sstoken.rato is not a key; the nearest one is sstoken.ratio")
    assert "pydantic" not in result.output
    assert "Traceback" not in result.output


def test_a_folder_without_an_adapter_is_refused_before_anything_is_loaded(config, inspect, tmp_path, monkeypatch):
    monkeypatch.delattr(axolotl_inspection, "data_of")
    result, _ = inspect(config, "--adapter", str(tmp_path))
    assert result.exit_code == 1
    assert f"--adapter: {tmp_path} holds no adapter_config.json; name a run's output_dir" in result.output


def test_that_no_sample_has_a_response_is_said(config, inspect, tmp_path):
    chats = tmp_path / "questions.jsonl"
    chats.write_text(json.dumps({"messages": [{"role": "user", "content": "Who?"}]}) + "\n")
    data = [{**config["datasets"][0], "path": str(chats)}]
    result, _ = inspect({**config, "datasets": data, "dataset_prepared_path": str(tmp_path / "own")})
    assert "No sample here has a response token; look at `type`, `roles_to_train`" in result.output
    assert "REL is zero" not in result.output


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("axolotl",), marks=SINCE_0_18),
        (sys.executable, "-m", "sstoken_plugin"),
    ],
    ids=["axolotl", "python"],
)
def test_it_is_a_command(config, tmp_path, command):
    assert "sstoken-inspect" in run_command(*command, "--help").stdout
    output = run_command(*command, "sstoken-inspect", str(write(config, tmp_path)), "--samples", "2").stdout
    assert "2 samples" in output
    # No colours where nobody sees them.
    assert "\x1b" not in output
    # The words of others are in a file.
    assert "[axolotl" not in output
    assert "[axolotl" in (tmp_path / "out" / "sstoken" / "inspect.log").read_text()
    # And the log of a training stays that of a training.
    assert not (tmp_path / "out" / "debug.log").exists()
    assert (tmp_path / "out" / "sstoken" / "selections.jsonl").exists()


def test_two_adapters_are_compared_with_one_model_in_memory(config, train, inspect, tmp_path, monkeypatch):
    train({**config, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5})
    load_model, loaded = axolotl_inspection.load_model_and_tokenizer, []

    def watched(*args, **kwargs):
        assert not any(model() for model in loaded)
        found = load_model(*args, **kwargs)
        loaded.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(axolotl_inspection, "load_model_and_tokenizer", watched)
    adapters = [str(tmp_path / "out" / f"checkpoint-{step}") for step in (2, 4)]
    result, records = inspect(config, "--samples", "4", "--adapter", adapters[0], "--adapter", adapters[1])
    assert result.exit_code == 0, result.output
    assert len(loaded) == 2
    folder = tmp_path / "inspection"
    others = [json.loads(line) for line in (folder / "selections-2.jsonl").read_text().splitlines()]
    pairs = list(zip(records, others, strict=True))
    assert all(one["history_nll"] == other["history_nll"] for one, other in pairs)
    assert any(one["current_nll"] != other["current_nll"] for one, other in pairs)
    marks = [(a, b) for one, other in pairs for a, b in zip(one["selected"], other["selected"], strict=True)]
    both, either = sum(a and b for a, b in marks), sum(a or b for a, b in marks)
    assert f"({both} of {either}); {sum(a != b for a, b in marks)} tokens are kept by one alone" in result.output
    page = (folder / "inspect.html").read_text()
    assert all(f"adapter {adapter}" in page for adapter in adapters)
    titles = re.findall(r'"title": ?"(By kind of token[^"]*)"', page)
    assert [title[-12:] for title in titles] == ["checkpoint-2", "checkpoint-4"]


def test_three_adapters_are_one_too_many(config, inspect, tmp_path):
    result, _ = inspect(config, *["--adapter", str(tmp_path)] * 3)
    assert result.exit_code == 1
    assert "--adapter is given 3 times; at most two" in result.output


def test_the_terminal_shows_samples(config, inspect):
    result, records = inspect(config, "--samples", "3", "--show", "2")
    assert "sample 1: " in result.output
    assert "sample 2: " not in result.output
    # No terminal, no colours.
    marks = [
        text if not response else f"[{text}]" if selected else f"{{{text}}}"
        for text, response, selected in (
            zip(*(records[0][name] for name in ("tokens", "response", "selected")), strict=True)
        )
    ]
    assert "".join(marks).replace("\n", "") in result.output.replace("\n", "").replace("⏎", "")
    assert "dropped ones" in inspect(config, "--samples", "1")[0].output
    assert "dropped ones" not in inspect(config, "--samples", "1", "--show", "0")[0].output


def test_labels_of_ones_own_are_in_the_record(config, inspect, tokenizer, tmp_path):
    ids = tokenizer.encode("Name a tree: an oak, or a beech.<|im_end|>")
    own = [-100] * 4 + [*ids[4:-2], 2, 2]
    lines = [
        {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)} for labels in (own, [-100] * 4 + ids[4:])
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    _, records = inspect({**config, "datasets": [{"path": str(file), "ds_type": "json", "type": None}]})
    assert [record.get("labels") for record in sorted(records, key=lambda record: "labels" not in record)] == [
        own,
        None,
    ]


def test_the_page_of_a_training_stays_beside_that_of_an_inspection(config, train, tmp_path):
    from sstoken_plugin.axolotl.cli import inspect_command

    train({**config, "max_steps": 2, "save_strategy": "steps", "save_steps": 2})
    folder = tmp_path / "out" / "sstoken"
    page = (folder / "report.html").read_bytes()
    result = CliRunner().invoke(inspect_command, [str(write(config, tmp_path)), "--samples", "2"])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_bytes() == page
    assert (folder / "inspect.html").read_bytes() != page


def test_nobody_else_writes_the_page_of_a_training(config, inspect, tmp_path):
    """Wherever the results go: a page there is that of a run."""
    (tmp_path / "inspection").mkdir()
    page = tmp_path / "inspection" / "report.html"
    page.write_text("of a run")
    result, records = inspect(config, "--samples", "2")
    assert result.exit_code == 0, result.output
    assert len(records) == 2
    assert page.read_text() == "of a run"
    # Nor where a run would write it at its end.
    folder = tmp_path / "out" / "sstoken"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    inspect(config, "--samples", "1", "--out", str(tmp_path / "link"))
    assert (folder / "inspect.html").exists()
    assert not (folder / "report.html").exists()


def test_in_a_folder_of_its_own_the_page_has_the_name_of_version_0_1_too(config, inspect, tmp_path):
    pages = [tmp_path / "inspection" / name for name in ("inspect.html", "report.html")]
    for samples in ("1", "2"):
        result, _ = inspect(config, "--samples", samples)
        assert result.exit_code == 0, result.output
        assert pages[0].read_bytes() == pages[1].read_bytes()


def test_an_inspection_that_fails_leaves_the_records_of_the_one_before(config, inspect, monkeypatch):
    _, before = inspect(config, "--samples", "2")

    def cut(records):
        yield next(iter(records))
        raise OSError(errno.ENOSPC, "No space left on device")

    write = inspection.write_records
    monkeypatch.setattr(inspection, "write_records", lambda records, file: write(cut(records), file))
    result, left = inspect(config, "--samples", "4")
    assert left == before
    assert result.exit_code == 1
    assert "selections.jsonl cannot be written (OSError: [Errno 28] No space left on device)" in result.output
    monkeypatch.undo()
    assert inspect(config, "--samples", "2")[1] == before


def place_file(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")


@pytest.mark.parametrize(
    ("out", "prepare"),
    [
        ("file/inside", lambda folder: place_file(folder.parent)),
        ("taken", lambda folder: (folder / "selections.jsonl").mkdir(parents=True)),
        ("page", lambda folder: (folder / "inspect.html").mkdir(parents=True)),
        ("/proc/nothing", lambda folder: None),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    config, tmp_path, monkeypatch, out, prepare
):
    from axolotl.integrations.base import PluginManager

    from sstoken_plugin.axolotl import cli

    PluginManager.get_instance().plugins.clear()
    monkeypatch.setattr("axolotl.common.datasets.load_datasets", lambda **kwargs: pytest.fail("data was loaded"))
    folder = tmp_path / out
    prepare(folder)
    result = CliRunner().invoke(cli.inspect_command, [str(write(config, tmp_path)), "--out", str(folder)])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: --out: ")
    assert "cannot be written" in result.output


def test_a_page_that_cannot_be_written_costs_neither_records_nor_view(config, inspect, monkeypatch):
    def no_room(file, report):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sstoken_plugin.report.assembly.write_page", no_room)
    result, records = inspect(config, "--samples", "2")
    assert result.exit_code == 1
    assert len(records) == 2
    assert "response tokens kept" in result.output
    assert "inspect.html cannot be written (OSError: [Errno 28] No space left on device)" in result.output
    assert "earlier inspection" not in result.output


def test_the_page_that_cannot_be_written_is_the_one_that_is_named(config, inspect, monkeypatch):
    """The first of two names is written then, and is no earlier page."""
    from sstoken_plugin.report import assembly as page

    write_page = page.write_page

    def no_room_for_two(file, report):
        if file.name == "report.html":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_page(file, report)

    monkeypatch.setattr("sstoken_plugin.report.assembly.write_page", no_room_for_two)
    result, _ = inspect(config, "--samples", "2")
    assert result.exit_code == 1
    assert "report.html cannot be written" in result.output
    assert "inspect.html cannot" not in result.output
    assert "earlier inspection" not in result.output


def test_a_home_folder_is_one(config, tmp_path, monkeypatch):
    from axolotl.integrations.base import PluginManager

    from sstoken_plugin.axolotl import cli

    PluginManager.get_instance().plugins.clear()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        cli.inspect_command, [str(write(config, tmp_path)), "--samples", "1", "--out", "~/results"]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "home" / "results" / "inspect.html").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- a list", "holds no keys"),
        (b"just text", "holds no keys"),
        (b"", "holds no keys"),
        ("base_model: Caf\u00e9".encode("latin-1"), "cannot be read as YAML in UTF-8"),
        (b"base_model: [", "cannot be read as YAML"),
        (b"base_model: 2020-13-45", "cannot be read as YAML"),
        pytest.param(b"base_model: " + b"[" * 3000, "cannot be read as YAML", id="nested"),
        (b"base_model: \x00", "cannot be read as YAML"),
    ],
    ids=repr,
)
def test_a_file_that_is_no_yaml_is_named(tmp_path, content, words):
    from sstoken_plugin.axolotl.cli import inspect_command

    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    result = CliRunner().invoke(inspect_command, [str(file)])
    assert result.exit_code == 1
    assert str(file) in result.output
    assert words in result.output


def test_what_only_others_raise_keeps_its_traceback(config, tmp_path, monkeypatch):
    """Words such as `not enough values to unpack` say nothing without it."""
    from sstoken_plugin.axolotl.cli import inspect_command

    def load(**kwargs):
        raise ValueError("not enough values to unpack (expected 2, got 1)")

    monkeypatch.setattr("axolotl.common.datasets.load_datasets", load)
    result = CliRunner().invoke(inspect_command, [str(write(config, tmp_path)), "--out", str(tmp_path / "o")])
    assert isinstance(result.exception, ValueError)


def test_a_model_on_several_gpus_is_not_scored(config, inspect, monkeypatch):
    load_model = axolotl_inspection.load_model_and_tokenizer

    def spread(**arguments):
        model, *others = load_model(**arguments)
        return spread_over_gpus(model), *others

    monkeypatch.setattr(axolotl_inspection, "load_model_and_tokenizer", spread)
    result, records = inspect(config)
    assert result.exit_code == 1
    assert "device_map: the model is spread over cuda:0 and cuda:1" in result.output
    assert not records


@pytest.mark.parametrize("key", ["history", "history_cache"])
def test_a_name_in_an_error_cannot_forge_a_line(config, inspect, key):
    name = "/no/where\n[INFO] ssToken is active: FORGED\x1b[2J"
    block = {"history_cache": "/dev/null" + name} if key == "history_cache" else {"history": name}
    result, _ = inspect({**config, "sstoken": block})
    assert result.exit_code == 1
    assert not any(line.startswith("[INFO]") for line in result.output.splitlines())
    assert "\x1b" not in result.output


def write_chat(file, *texts):
    file.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": text}]})
            for text in texts
        )
    )
    return [{"path": str(file), "type": "chat_template", "field_messages": "messages"}]


@pytest.mark.parametrize(
    ("encoding", "command"),
    [
        pytest.param("cp1252", ["axolotl"], marks=SINCE_0_18),
        ("ascii", [sys.executable, "-m", "sstoken_plugin"]),
    ],
)
def test_a_terminal_of_another_encoding_loses_nothing(config, tmp_path, encoding, command):
    datasets = write_chat(tmp_path / "other.jsonl", "Caf\u00e9 \u4f60\u597d \U0001f389 fine\nnew line", "plain")
    file = write({**config, "datasets": datasets}, tmp_path)
    command = [*command, "sstoken-inspect", str(file), "--out", str(tmp_path / "o")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run(command, capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    # Ours alone, and kept and dropped are told apart without an escape code.
    assert result.stdout.startswith(b"data "), result.stdout[:500]
    assert b"\x1b" not in result.stdout
    assert b"[plain]" in result.stdout
    assert b"]{" in result.stdout
    assert len(result.stdout.splitlines()) < 40
    assert b"Written: " in result.stdout
    assert (tmp_path / "o" / "inspect.html").stat().st_size > 10_000
    assert "\u4f60\u597d" in (tmp_path / "o" / "selections.jsonl").read_text(encoding="utf-8").replace('", "', "")


def test_a_line_of_the_records_is_one_line_for_every_reader(config, inspect, tmp_path):
    odd = "one\u2028two\u2029three\u0085four"
    result, records = inspect({**config, "datasets": write_chat(tmp_path / "odd.jsonl", odd, "plain")})
    assert result.exit_code == 0, result.output
    content = (tmp_path / "inspection" / "selections.jsonl").read_text(encoding="utf-8")
    assert len(content.splitlines()) == content.count("\n") == 2
    assert any("one\u2028two" in "".join(record["tokens"]) for record in records)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sample", "5"], "--sample is not an option; did you mean --samples?"),
        (["--adaptr", "outputs"], "did you mean --adapter?"),
        (["--ratio", "0.4"], "--ratio is not an option; write --sstoken.ratio=VALUE."),
        (["--gamma=0.4"], "write --sstoken.gamma=VALUE."),
        (["--sstoken.rato=0.4"], "the nearest one is sstoken.ratio"),
        (["--micro_batch_sise=4"], "the nearest key is micro_batch_size"),
        (["--no-such-thing=1"], "no option of this command and no key of Axolotl's"),
        (["--sstoken.ratio"], "--sstoken.ratio has no value"),
        (["more.yaml"], "more.yaml is not an option"),
    ],
    ids=str,
)
def test_an_option_that_nobody_reads_is_refused(config, inspect, arguments, words):
    result, _ = inspect(config, *arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def test_keys_of_axolotl_are_options(config, inspect):
    result, _ = inspect(config, "--samples", "2", "--sequence-len=128", "--bf16", "false")
    assert result.exit_code == 0, result.output
