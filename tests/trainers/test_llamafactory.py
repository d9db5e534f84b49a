"""LLaMA-Factory: the cases of every trainer, its command lines, and what it must not be asked for."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest
import yaml
from llamafactory.hparams import get_infer_args, get_train_args, parser
from llamafactory.train.sft import workflow
from material import ROOT, run_command

import sstoken_startup_llamafactory as startup
from sstoken_plugin.base import versions
from sstoken_plugin.llamafactory import arguments, refusals, releases
from trainers import run_llamafactory
from trainers.cases import SELECTS, Cases
from trainers.documented import block, prepare

ACTIVE = "ssToken is active: it trains on"


class TestLlamaFactory(Cases):
    """What holds in every trainer."""

    adapter = run_llamafactory


@pytest.fixture
def yaml_of(tiny_llama, chats, tmp_path):
    """The YAML of a run of one step with changes, as a mapping."""

    def settings(**changes):
        plan = run_llamafactory.Plan(str(tiny_llama), str(chats), str(tmp_path / "out"), "padded", SELECTS, steps=1)
        return {**run_llamafactory.settings(plan), **changes}

    return settings


@pytest.fixture
def file_of(yaml_of, tmp_path):
    """The same as a file."""

    def write(**changes):
        file = tmp_path / "c.yaml"
        file.write_text(yaml.safe_dump(yaml_of(**changes)))
        return str(file)

    return write


COMMANDS = {
    "unchanged command": ("llamafactory-cli", {}),
    "no start-up file": ("python -m sstoken_plugin.llamafactory", {"SSTOKEN_STARTUP": "0"}),
    "unknown keys allowed": ("llamafactory-cli", {"ALLOW_EXTRA_ARGS": "1"}),
}


@pytest.mark.parametrize(("command", "environment"), COMMANDS.values(), ids=COMMANDS)
def test_a_block_selects_and_the_command_line_changes_it(command, environment, file_of, tmp_path):
    told = run_command(*command.split(), "train", file_of(), "sstoken.ratio=0.4", **environment).stdout
    assert told.count(f"{ACTIVE} 40% of each sample's response tokens") == 1
    assert (tmp_path / "out" / "sstoken" / "report.html").exists()


@pytest.mark.parametrize(("command", "environment"), list(COMMANDS.values())[:2], ids=list(COMMANDS)[:2])
def test_the_ranks_that_it_starts_select_too(command, environment, file_of):
    ranks = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    told = run_command(*command.split(), "train", file_of(), **ranks, **environment).stdout
    assert told.count(ACTIVE) == 1
    assert "Initializing 2 distributed tasks" in told


def test_ranks_of_the_module_itself_select(file_of):
    start = ("torchrun", "--standalone", "--nproc_per_node", "2", "-m", "sstoken_plugin.llamafactory", "train")
    assert run_command(*start, file_of(), SSTOKEN_STARTUP="0").stdout.count(ACTIVE) == 1


def test_without_the_start_up_file_the_unchanged_command_stops(file_of):
    run = run_command("llamafactory-cli", "train", file_of(), check=False, SSTOKEN_STARTUP="0")
    assert run.returncode != 0
    assert "sstoken" in run.stdout.splitlines()[-1]


def test_the_documented_example_runs(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_llama, "outputs/llamafactory/data.jsonl")
    Path("c.yaml").write_text(block("LLaMA-Factory", "yaml"))
    Path("dataset_info.json").write_text(block("LLaMA-Factory", "json"))
    told = run_command("llamafactory-cli", "train", "c.yaml", "max_steps=1").stdout
    assert f"{ACTIVE} 60% of each sample's response tokens" in told
    assert "the end of a turn (<|im_end|>) is always kept" in told
    assert Path("outputs/llamafactory/sstoken/report.html").exists()


def test_the_example_configuration_runs(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_llama, "outputs/cpu-demo/data.jsonl")
    command, *words = block("LLaMA-Factory", "bash").splitlines()[-1].split()
    assert f"{ACTIVE} 60% of each sample's response tokens" in run_command(command, *words, "max_steps=1").stdout


def test_every_refusal_is_documented():
    page = (ROOT / "docs" / "trainers.md").read_text().split("\n## LLaMA-Factory\n")[1]
    assert all(f"`{refusal.key}" in page for refusal in refusals.REFUSALS)


def test_a_run_without_a_block_is_read_as_ever(yaml_of, monkeypatch):
    plain = yaml_of()
    del plain["sstoken"]
    monkeypatch.delattr(arguments, "parse")
    *_, tuning, _ = get_train_args(plain)
    assert not hasattr(tuning, "sstoken")
    assert not startup.ours({field.name: 0 for group in parser._TRAIN_ARGS for field in dataclasses.fields(group)})


def test_what_is_asked_for_reaches_the_trainer(yaml_of):
    *_, tuning, _ = get_train_args(yaml_of(sstoken={"ratio": 0.3}))
    assert tuning.sstoken.config.ratio == 0.3
    assert tuning.sstoken.given.get("cutoff_len") == 512
    *_, tuning, _ = get_train_args(yaml_of(sstoken=None))
    assert tuning.sstoken.config.ratio == 0.6


MISSPELT = {
    "sstokn": r"sstokn is not a key; the nearest one is `sstoken:`",
    "ss_token": r"ss_token is not a key; the nearest one is `sstoken:`",
    "SSToken": r"SSToken is not a key; the nearest one is `sstoken:`",
    "sstoken.ratoi": r"sstoken\.ratoi is not a key of the YAML; write .* indented below it, `ratio: \.\.\.`",
}


@pytest.mark.parametrize("allowed", ["0", "1"])
@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_block_is_refused(key, allowed, yaml_of, monkeypatch):
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", allowed)
    for beside in ({}, {"sstoken": {"ratio": 0.5}}):
        plain = yaml_of()
        del plain["sstoken"]
        with pytest.raises(ValueError, match=MISSPELT[key]):
            get_train_args({**plain, **beside, key: {"ratio": 0.5}})


@pytest.mark.parametrize("block", [False, 0.6, "on", [{"ratio": 0.6}]], ids=str)
def test_what_is_no_block_is_refused(block, yaml_of):
    with pytest.raises(ValueError, match=r"^sstoken: .* is not a block of settings"):
        get_train_args(yaml_of(sstoken=block))


@pytest.mark.parametrize("allowed", ["0", "1"])
@pytest.mark.parametrize("words", [["--sstoken.ratio", "0.4"], ["sstoken.ratio=0.4"], ["--sstoken", "{}"]], ids=str)
def test_settings_without_a_yaml_are_refused(words, allowed, yaml_of, monkeypatch):
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", allowed)
    plain = yaml_of(dataset="sstoken_chats")
    given = [word for key in ("output_dir", "dataset") for word in (f"--{key}", plain[key])]
    with pytest.raises(ValueError, match=r"read from a YAML.*`llamafactory-cli train c\.yaml sstoken\.ratio=0\.4`"):
        get_train_args([*given, *words])
    # A value may be called so.
    assert startup.ours(given) == []


def test_a_block_where_nothing_is_trained_is_refused(tiny_llama):
    given = {"model_name_or_path": str(tiny_llama), "template": "smollm", "sstoken": {"ratio": 0.6}}
    with pytest.raises(ValueError, match=r"^sstoken: it selects tokens of a training; remove it here"):
        get_infer_args(given)


REFUSED = {
    "use_dft_loss": True, "use_eaft_loss": True, "use_asft_loss": True, "label_smoothing_factor": 0.1, "use_mca": True,
    "use_hyper_parallel": True, "streaming": True, "shift_attn": True, "mixture_of_depths": "convert", "use_kt": True,
    "packing": True, "use_unsloth": True, "use_badam": True,
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_what_selection_cannot_run_beside_is_refused(key, yaml_of):
    beside = {"finetuning_type": "full"} if key == "use_badam" else {}
    with pytest.raises(ValueError, match=rf"^{key}: .*; .*, or remove the `sstoken:` block\.$"):
        get_train_args(yaml_of(**{key: REFUSED[key]}, **beside))


def test_stages_and_adapters_that_selection_does_not_know_are_refused(yaml_of, monkeypatch):
    for stage in ("pt", "rm", "ppo", "dpo", "kto"):
        with pytest.raises(
            ValueError, match=rf"^stage: {stage} does not train on labelled tokens alone; set `stage: sft`"
        ):
            get_train_args(yaml_of(stage=stage, **({"reward_model": "there"} if stage == "ppo" else {})))
    with pytest.raises(ValueError, match=r"^finetuning_type: oft .*; set `finetuning_type: lora`"):
        get_train_args(yaml_of(finetuning_type="oft"))
    merged = yaml_of(adapter_name_or_path="one,two", sstoken={"history": str(ROOT)})
    with pytest.raises(ValueError, match=r"^adapter_name_or_path: one, two merges an adapter"):
        get_train_args(merged)
    with monkeypatch.context() as megatron:
        megatron.setenv("USE_MCA", "1")
        with pytest.raises(ValueError, match=r"^use_mca: true trains in a trainer of its own.*; unset USE_MCA"):
            parser._parse_train_args(yaml_of())
    monkeypatch.setenv("USE_RAY", "1")
    with pytest.raises(ValueError, match=r"^use_ray: true .*; unset USE_RAY, or remove"):
        parser.get_ray_args(yaml_of())


def test_what_does_not_read_signals_is_accepted_beside_kernels_that_show_none(yaml_of, monkeypatch):
    monkeypatch.setattr(parser, "_check_extra_dependencies", lambda *_: None)
    *_, tuning, _ = get_train_args(yaml_of(use_unsloth=True, sstoken={"selector": "random"}))
    assert refusals.untested(tuning.sstoken.given) == ["use_unsloth"]


def test_another_release_is_named_with_the_supported_one(yaml_of, monkeypatch):
    monkeypatch.delenv("SSTOKEN_ANY_LLAMAFACTORY", raising=False)
    for installed in ("0.9.4", "0.9.6.dev0", "1.0.0", "main"):
        monkeypatch.setattr(versions, "version", lambda package, installed=installed: installed)
        told = rf"^llamafactory: sstoken runs on LLaMA-Factory 0\.9\.5, and this is {installed};"
        with pytest.raises(ValueError, match=told):
            get_train_args(yaml_of())
        with monkeypatch.context() as allowed:
            allowed.setenv("SSTOKEN_ANY_LLAMAFACTORY", "1")
            get_train_args(yaml_of())
    for installed in ("0.9.5", "0.9.5.post1", "0.9.5+cu130"):
        monkeypatch.setattr(versions, "version", lambda package, installed=installed: installed)
        get_train_args(yaml_of())


@pytest.mark.parametrize("change", ["no trainer", "no workflow", "another trainer"])
def test_a_run_stops_where_the_trainer_is_made_in_another_way(change, yaml_of, monkeypatch):
    if change == "no trainer":
        monkeypatch.delattr(workflow, "CustomSeq2SeqTrainer")
    elif change == "no workflow":
        monkeypatch.setattr(workflow, "run_sft", lambda *_: None)
    else:
        monkeypatch.setattr(workflow, "CustomSeq2SeqTrainer", type("Other", (), {}))
    with pytest.raises(ValueError, match=r"^sstoken: this LLaMA-Factory does not make its trainer as 0\.9\.5 does"):
        get_train_args(yaml_of())


def test_a_block_that_comes_past_the_start_up_file_stops(yaml_of, monkeypatch):
    """As where a release has other names, or its next trainer reads the YAML."""
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    monkeypatch.setattr(parser, "_parse_args", lambda parser, args, **_: parser.parse_dict(args, allow_extra_keys=True))
    with pytest.raises(ValueError, match=r"^sstoken: nobody reads it here, and every token would be trained on"):
        get_train_args(yaml_of())


def test_the_next_trainer_of_llama_factory_is_not_run_with_a_block(file_of):
    run = run_command(
        "llamafactory-cli", "sft", file_of(), check=False, USE_V1="1", ALLOW_EXTRA_KEYS="1", NPROC_PER_NODE="1"
    )
    assert run.returncode != 0
    assert "sstoken: nobody reads it here" in run.stdout


def test_a_stranger_with_these_names_is_left_as_it_is(tmp_path):
    folder = tmp_path / "llamafactory" / "hparams"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "parser.py").write_text("def _parse_args(parser, args):\n    return args\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom llamafactory.hparams.parser import _parse_args\n"
    assert run_command("python", "-c", f"{code}print(_parse_args(None, ['--stage', 'sft']))").stdout.strip() == (
        "['--stage', 'sft']"
    )


def test_the_supported_release_is_the_one_that_runs_here():
    assert importlib.metadata.version("llamafactory") == ".".join(map(str, releases.SUPPORTED))
