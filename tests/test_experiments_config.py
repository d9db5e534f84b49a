"""Settings of experiments: every fault is one sentence that names key and fix, before anything is trained."""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock
from material import write_page

from sstoken_plugin.experiments.arms_option import arms_of
from sstoken_plugin.experiments.command import command
from sstoken_plugin.experiments.compare import compare_command, experiment_of
from sstoken_plugin.experiments.config import parse
from sstoken_plugin.experiments.have import have
from sstoken_plugin.experiments.numbers import as_json
from sstoken_plugin.experiments.results import write_json
from sstoken_plugin.experiments.runs import Runs, data_folder, differences, part_of, runs_of, train_yaml

BASE = {
    "base_model": "model",
    "plugins": ["sstoken", "axolotl.integrations.liger.LigerPlugin"],
    "sstoken": {"ratio": 0.3},
    "datasets": [{"path": "nowhere", "type": "alpaca"}],
    "val_set_size": 0.1,
    "eval_steps": 10,
    "hub_model_id": "mine",
    "save_steps": 3,
    "wandb_project": "mine",
    "mlflow_experiment_name": "mine",
    "comet_project_name": "mine",
    "trackio_project_name": "mine",
    "use_tensorboard": True,
    "seed": 7,
    "adapter": "lora",
}
WHOLE = {"base": BASE, "out": "out", "arms": {"all": None, "random": {"selector": "random"}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arm": {}}, "arm is not a key; the nearest one is arms."),
        ({"base": None}, "base is missing; add it."),
        ({"base": {"datasets": []}}, "has no `base_model:`"),
        ({"base": "none.yaml"}, "base: none.yaml is no file; write the path of one"),
        ({"arms": {}}, "arms: {} is not allowed"),
        ({"arms": {"a/b": None}}, "arms: 'a/b' is no name"),
        ({"arms": {"a": None, "A": {}}}, "arms: a and A differ in capitals alone"),
        ({"arms": {"Untrained": None}}, "arms: untrained is the model before training, which is measured anyway"),
        ({"arms": {"a": 3}}, "arms.a: 3 is not a block of settings"),
        ({"arms": {"a": {"ratoi": 0.5}}}, "arms.a: sstoken.ratoi is not a key; the nearest one is sstoken.ratio."),
        ({"arms": {"a": {"ratio": 2}}}, "arms.a: sstoken.ratio: 2 is not allowed"),
        ({"arms": {"a": {"sstoken": {}, "change": {}}}}, "arms.a.change is not a key; the nearest one is "
         "arms.a.changes."),
        ({"arms": {"a": {"changes": {"seed": 1}}}}, "arms.a.changes.seed is set by the experiment itself"),
        ({"arms": {"a": {"changes": {"early_stopping_patience": 2}}}},
         "arms.a.changes.early_stopping_patience is set by the experiment itself; remove it there."),
        ({"arms": {"a": {"changes": {"logging_steps": 2}}}}, "arms.a.changes.logging_steps is set by"),
        ({"changes": {"sstoken": {"ratio": 0.1}}}, "changes.sstoken is set by the experiment itself"),
        ({"changes": {"dataset_prepared_path": "mine"}}, "changes.dataset_prepared_path is set by"),
        ({"seeds": 0}, "seeds: 0 is not allowed: Input should be greater than or equal to 1; write another value, or "
         "remove the key for its default."),
        ({"seeds": 10**10}, "seeds: 10000000000 is not allowed"),
        ({"seeds": []}, "seeds: [] is not allowed: List should have at least 1 item"),
        ({"seeds": [1, "2"]}, "seeds: '2' is not allowed: Input should be a valid integer"),
        ({"seeds": "3"}, "seeds: '3' is not allowed: a whole number says how many seeds"),
        ({"seeds": 3.0}, "seeds: 3.0 is not allowed: a whole number says how many seeds"),
        ({"seeds": "1,2"}, "seeds: '1,2' is not allowed: a whole number says how many seeds, a list which, as in "),
        ({"out": "\0"}, "out: '\\x00' is not allowed"),
        ({"smallest_difference": math.inf}, "smallest_difference: inf is not allowed"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] names a seed twice"),
        ({"evaluations": {"e": {}}}, "evaluations.e: give it a `kind:`, one of loss, forgetting, answers, lm_eval."),
        ({"evaluations": {"e": {"kind": "los"}}}, "did you mean loss?"),
        ({"evaluations": {"e": {"kind": "loss", "sample": 3}}}, "evaluations.e.sample is not a key; the nearest one is "
         "evaluations.e.samples."),
        ({"evaluations": {"e": {"kind": "forgetting"}}}, "evaluations.e.datasets is missing"),
        ({"evaluations": {"e": {"kind": "answers", "extract": "("}}}, "evaluations.e.extract: '(' is not allowed: it "
         "is no regular expression"),
        ({"evaluations": {"e": {"kind": "loss", "datasets": []}}}, "evaluations.e.datasets: [] is not allowed"),
        ({"evaluations": {"e": {"kind": "loss", "datasets": [{"type": "alpaca"}]}}},
         "evaluations.e.datasets: [{'type': 'alpaca'}] is not allowed: entry 1 has no `path:`"),
        ({"against": ["rondom"]}, "against: rondom is no arm; the nearest one is random."),
        ({"against": []}, "against: [] is not allowed"),
    ],
)  # fmt: skip
def test_a_fault_is_a_sentence_with_its_key(change, words, tmp_path):
    changed = {key: value for key, value in {**WHOLE, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=r"\.") as error:
        parse(changed)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).count(" is not allowed") <= 1
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(changed, sort_keys=False))
    told = CliRunner().invoke(command, [str(file)])
    assert told.exit_code == 1
    assert words in told.output
    assert "Traceback" not in told.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1: x\nbase_model: m", "has a key that YAML reads as 1; put it in quotes"),
        ("on: true\nbase_model: m", "has a key that YAML reads as True"),
        ("base_model: m\nspecial: {2020-01-01: x}", "the key 2020-01-01 is a date; put it in quotes"),
        pytest.param("base_model: " + "[" * 3000, "cannot be read as YAML", id="nested"),
    ],
)
def test_a_base_that_is_odd_is_told(text, words, tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^base: ") as error:
        parse({**WHOLE, "base": str(file)})
    assert words in str(error.value)


def test_what_is_no_number_for_json_is_no_fault_of_an_experiment(tmp_path):
    whole = {**WHOLE, "base": {**BASE, "max_grad_norm": math.inf}, "out": str(tmp_path)}
    write_json(as_json(parse(whole), []), tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["base"]["max_grad_norm"] == "Infinity"


@pytest.mark.parametrize(
    "same", [{}, {"ratio": 0.6}, {"selector": "sstoken", "warmup_ratio": 0.2}, {"report_samples": 5}], ids=str
)
def test_two_arms_of_one_training_are_refused(same, tmp_path):
    whole = {**WHOLE, "out": str(tmp_path / "out"), "arms": {"a": None, "b": {}, "c": same}}
    with pytest.raises(ValueError, match="arms: b and c are one and the same training"):
        have(parse(whole), Runs.of(parse(whole)))
    assert not (tmp_path / "out").exists()


def test_an_arm_that_failed_before_it_had_anything_can_be_put_right(tmp_path):
    whole = {**WHOLE, "out": str(tmp_path)}
    changed = {**whole, "arms": {"all": {"changes": {"learning_rate": 0.5}}}}
    failed, run = (runs_of(parse(each))[0] for each in (changed, whole))
    write_json({"fingerprint": failed.fingerprint, "settings": failed.settings}, failed.folder / "run.json")
    run.refuse_other_settings()
    (run.folder / "out" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"or remove {run.folder.parent} to have the runs of this arm anew"):
        run.refuse_other_settings()
    shutil.rmtree(run.folder / "out")
    with FileLock(run.folder / "lock"), pytest.raises(ValueError, match="holds a run of other settings"):
        run.refuse_other_settings()


def test_work_whose_settings_cannot_be_read_is_not_taken_over(tmp_path):
    run = runs_of(parse({**WHOLE, "out": str(tmp_path)}))[0]
    (run.folder / "out" / "checkpoint-5").mkdir(parents=True)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="holds a run of other settings \\(they cannot be read\\)"):
        run.refuse_other_settings()


def test_a_folder_that_another_user_has_locked_for_himself_is_told(tmp_path):
    run = runs_of(parse({**WHOLE, "out": str(tmp_path)}))[0]
    # As root, of whom the tests may be, is refused no file that is one.
    (run.folder / "lock").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"lock cannot be had .* give the same command as the user who began"):
        run.is_taken()


def test_an_arm_that_stands_twice_is_not_lost_unseen(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text("base: {base_model: m}\nout: o\narms:\n  a: null\n  a: {selector: random}\n")
    told = CliRunner().invoke(command, [str(file)])
    assert told.exit_code == 1
    assert "a stands twice, in line 5 again" in told.output


def test_a_run_has_all_of_the_base_but_what_tells_arms_apart_or_speaks_to_others(tmp_path):
    arms = {**WHOLE["arms"], "mine": {"changes": {"learning_rate": 1}}}
    experiment = parse({**WHOLE, "out": str(tmp_path), "seeds": 2, "arms": arms})
    runs = runs_of(experiment)
    assert [run.name for run in runs][:4] == ["all, seed 1", "random, seed 1", "mine, seed 1", "all, seed 2"]
    plain, random, mine = (train_yaml(run, experiment.out) for run in runs[:3])
    assert plain["plugins"] == ["axolotl.integrations.liger.LigerPlugin"]
    assert "sstoken" not in plain
    assert random["sstoken"] == {"report": False, "selector": "random"}
    assert mine == {**plain, "learning_rate": 1, "output_dir": mine["output_dir"]}
    spoken = ("eval_steps", "hub_model_id", "save_steps", "use_tensorboard", "project", "experiment_name")
    assert not [key for key in plain if key.endswith(spoken)]
    # The seed of the split, which no seed of a training changes.
    assert {train_yaml(run, experiment.out)["seed"] for run in runs} == {7}
    assert len({run.fingerprint for run in runs}) == len(runs)


def test_a_seed_without_a_value_does_not_draw_another_split_in_each_run(tmp_path):
    (run,) = runs_of(parse({**WHOLE, "base": {**BASE, "seed": None}, "arms": {"all": None}, "seeds": 1}))
    assert run.settings["train"]["seed"] == 42


def test_losses_of_the_history_are_shared_where_there_are_any(tmp_path):
    arms = {"plain": None, "rel": {"selector": "rel"}, "ema": {"history": "ema"}, "own": {"history_cache": False}}
    runs = runs_of(parse({**WHOLE, "out": str(tmp_path), "arms": arms, "seeds": 1}))
    caches = [train_yaml(run, tmp_path).get("sstoken", {}).get("history_cache") for run in runs]
    assert caches == [None, str(tmp_path / "history"), None, False]


def test_parts_are_all_runs_each_once():
    for count in (1, 5, 12):
        runs = list(range(count))
        for parts in (1, 2, 5, 20):
            assert [run for part in range(1, parts + 1) for run in part_of(runs, f"{part}/{parts}")] == runs
    for wrong in ("0/2", "3/2", "1", "a/b", "1/"):
        with pytest.raises(ValueError, match="--part"):
            part_of([1], wrong)


def test_a_change_of_a_data_file_is_a_change(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("one")
    whole = {**WHOLE, "base": {**BASE, "datasets": [{"path": str(file)}]}}
    before = runs_of(parse(whole))[0]
    file.write_text("two")
    after = runs_of(parse(whole))[0]
    assert before.fingerprint != after.fingerprint
    (told,) = differences(before.settings, after.settings)
    assert told.startswith(f"data.{file} was ")


def test_an_empty_block_is_a_difference():
    one, other = {"train": {"seed": 1, "special_tokens": {}}}, {"train": {"seed": 1}}
    assert differences(one, other) == ["train.special_tokens was {} and is not there"]
    assert differences({"plugins": []}, {"plugins": []}) == []


def test_plain_training_that_becomes_a_selection_is_a_difference():
    assert differences({"sstoken": None}, {"sstoken": {"ratio": 0.5}}) == [
        "sstoken.ratio was not there and is 0.5", "sstoken was None and is not there",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ({"path": "data"}, "data/train/part.jsonl"),
        ({"path": "data", "data_files": "data/train/*.jsonl"}, "data/train/part.jsonl"),
        ({"path": "json", "data_files": ["one.jsonl"]}, "one.jsonl"),
    ],
)
def test_a_change_of_data_in_a_folder_is_a_change(entry, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / file).write_text("one")
    whole = {**WHOLE, "base": {**BASE, "datasets": [entry]}}
    before = runs_of(parse(whole))[0].fingerprint
    # What load_from_disk leaves there, and a download.
    (tmp_path / "data/cache-1f.arrow").write_text("")
    (tmp_path / "data/.cache/huggingface").mkdir(parents=True)
    (tmp_path / "data/.cache/huggingface/part.jsonl.metadata").write_text("now")
    assert runs_of(parse(whole))[0].fingerprint == before
    (tmp_path / file).write_text("two")
    assert runs_of(parse(whole))[0].fingerprint != before


def test_a_label_that_is_put_right_in_a_large_file_is_a_change(tmp_path):
    file = tmp_path / "data.jsonl"
    with file.open("wb") as opened:
        opened.truncate(2**28 + 1)
    whole = {**WHOLE, "base": {**BASE, "datasets": [{"path": str(file)}]}}
    before = runs_of(parse(whole))[0].fingerprint
    with file.open("rb+") as opened:
        opened.seek(2**27 + 2**20)
        opened.write(b"1")
    assert runs_of(parse(whole))[0].fingerprint != before


def test_other_weights_of_the_same_size_are_a_change_however_large_they_are(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(2**28 + 1)
    whole = {**WHOLE, "base": {**BASE, "base_model": str(model)}}
    before = runs_of(parse(whole))[0].fingerprint
    with (model / "model.safetensors").open("rb+") as file:
        # A tensor in the middle.
        file.seek(2**27)
        file.write(b"1" * 2**23)
    assert runs_of(parse(whole))[0].fingerprint != before


@pytest.mark.parametrize(
    ("changes", "is_shared"),
    [
        ({"learning_rate": 1, "num_epochs": 0.6, "lora_r": 4}, True),
        ({"excess_length_strategy": "truncate"}, False),
        ({"curriculum_sampling": True}, False),
        ({"sequence_len": 8}, False),
    ],
)
def test_arms_have_prepared_data_of_their_own_where_their_data_differ(changes, is_shared, tmp_path):
    arms = {"all": None, "random": {"selector": "random"}, "mine": {"changes": changes}}
    plain, random, mine = (data_folder(run, tmp_path) for run in runs_of(parse({**WHOLE, "arms": arms, "seeds": 1})))
    assert plain == random
    assert (plain == mine) is is_shared


def test_another_seed_of_the_split_prepares_the_data_anew(tmp_path):
    folders = {
        data_folder(run, tmp_path)
        for seed in (7, 8)
        for run in runs_of(parse({**WHOLE, "base": {**BASE, "seed": seed}}))
    }
    assert len(folders) == 2


@pytest.mark.parametrize("file", ["model/tokenizer.json", "model/chat_template.jinja", "other.jinja"])
def test_another_template_or_tokenizer_is_a_change_and_other_data(file, tmp_path):
    (tmp_path / "model").mkdir()
    base = {**BASE, "base_model": str(tmp_path / "model"), "chat_template_jinja": str(tmp_path / "other.jinja")}
    found = []
    for content in ("one", "two"):
        (tmp_path / file).write_text(content)
        found.append(runs_of(parse({**WHOLE, "base": base}))[0])
    assert found[0].fingerprint != found[1].fingerprint
    assert len({data_folder(run, tmp_path) for run in found}) == 2


@pytest.mark.parametrize("of", ["the base", "an evaluation"])
@pytest.mark.parametrize("key", ["path", "chat_template_jinja"])
def test_other_data_or_another_template_of_one_data_set_is_a_change_and_other_data(of, key, tmp_path):
    file = tmp_path / "own"
    data = [{"path": "nowhere", "type": "chat_template", "chat_template": "jinja", key: str(file)}]
    own = {"base": {**BASE, "datasets": data}} if of == "the base" else {"evaluations": {"e": {"kind": "loss",
           "datasets": data}}}  # fmt: skip
    found = []
    for content in ("one", "two"):
        file.write_text(content)
        found.append(runs_of(parse({**WHOLE, **own}))[0])
    assert found[0].fingerprint != found[1].fingerprint
    assert len({data_folder(run, tmp_path, "held_out") for run in found}) == 2
    # A training does not depend on what is measured after it.
    assert len({data_folder(run, tmp_path) for run in found}) == (2 if of == "the base" else 1)


def test_a_batch_of_answers_that_fits_does_not_cost_a_training():
    one, other = (
        runs_of(parse({**WHOLE, "evaluations": {"said": {"kind": "answers", "batch_size": size}}}))[0]
        for size in (8, 2)
    )
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("plugin", ["axolotl.integrations.swanlab.SwanLabPlugin"])
def test_a_tracker_of_the_base_is_no_plugin_of_a_run(plugin):
    base = {**BASE, "plugins": [*BASE["plugins"], plugin], "use_swanlab": True, "swanlab_project": "mine"}
    assert runs_of(parse({**WHOLE, "base": base}))[0].settings["train"]["plugins"] == [BASE["plugins"][1]]


@pytest.mark.parametrize(
    "change", [{"datasets": 5}, {"datasets": [{"path": "x" * 5000}]}, {"datasets": [{"path": "x", "data_files": 5}]},
               {"max_grad_norm": float("inf")}],
    ids=str,
)  # fmt: skip
def test_what_axolotl_has_to_judge_is_left_to_it(change):
    runs = runs_of(parse({**WHOLE, "base": {**BASE, **change}}))
    json.dumps(runs[0].settings, allow_nan=False)


def test_a_single_plugin_that_is_no_list_is_told():
    with pytest.raises(ValueError, match=r"^plugins: 'a\.B' is not a list; write one"):
        runs_of(parse({**WHOLE, "base": {**BASE, "plugins": "a.B"}}))


def test_results_do_not_go_into_a_folder_that_is_a_data_set(tmp_path):
    (tmp_path / "data").mkdir()
    base = {**BASE, "datasets": [{"path": str(tmp_path / "data")}]}
    with pytest.raises(ValueError, match=r"^out: .*/data/exp lies in .*/data, whose files are a data set; name"):
        Runs.of(parse({**WHOLE, "base": base, "out": str(tmp_path / "data/exp")}))


@pytest.mark.parametrize("key", ["base_model", "tokenizer_config", "lora_model_dir"])
def test_results_do_not_go_into_the_folder_of_a_model(key, tmp_path):
    with pytest.raises(ValueError, match=r"^out: .* is the folder of a model or tokenizer; name one of its own\.$"):
        Runs.of(parse({**WHOLE, "base": {**BASE, key: str(tmp_path)}, "out": str(tmp_path)}))
    # The model before training is measured, where no arm begins from it too.
    arms = {"all": {"changes": {key: "another"}}}
    with pytest.raises(ValueError, match="is the folder of a model or tokenizer"):
        Runs.of(parse({**WHOLE, "base": {**BASE, key: str(tmp_path)}, "out": str(tmp_path), "arms": arms}))


def test_the_name_of_a_history_that_a_run_makes_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Runs.of(parse({**WHOLE, "out": "initial", "arms": {"all": None, "rel": {"history": "initial"}}}))


def test_a_data_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    def closed(self, *arguments, **settings):
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "closed.jsonl"
    file.write_text("{}")
    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(ValueError, match=r"closed\.jsonl cannot be read \(Permission denied\), and results depend on"):
        runs_of(parse({**WHOLE, "base": {**BASE, "datasets": [{"path": str(file)}]}}))


def test_a_name_that_no_folder_can_have_is_left_to_axolotl():
    assert runs_of(parse({**WHOLE, "base": {**BASE, "base_model": "x" * 300}}))[0].settings["data"] == {}


@pytest.mark.parametrize(
    ("arms", "against"),
    [(["sstoken", "random", "all"], ("all", "random")), (["rel", "position"], ("rel",)), (["rel"], ("rel",))],
)
def test_there_is_always_an_arm_to_compare_with(arms, against):
    blocks = {name: None if name == "all" else {"selector": name} for name in arms}
    assert parse({**WHOLE, "arms": blocks}).against == against


def test_a_comparison_is_beside_what_the_yaml_trains_and_uploads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**BASE, "output_dir": "mine/"}))
    (tmp_path / "mine-sstoken-compare").write_text("in its place")
    told = CliRunner().invoke(compare_command, ["config.yaml"])
    assert told.exit_code == 1
    assert "out: mine-sstoken-compare cannot be made" in told.output


@pytest.mark.parametrize("output_dir", [".", "./", "sub/.."])
def test_a_comparison_beside_this_folder_has_its_name(output_dir, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "config.yaml").write_text(yaml.safe_dump({**BASE, "output_dir": output_dir}))
    (tmp_path / "here-sstoken-compare").write_text("in its place")
    told = CliRunner().invoke(compare_command, ["config.yaml"])
    assert "here-sstoken-compare cannot be made" in told.output


@pytest.mark.parametrize(
    ("text", "arms"),
    [
        ("sstoken,all", {"sstoken": {"ratio": 0.3, "selector": "sstoken"}, "all": None}),
        (
            "mine:ratio=0.8,selector=rel, all",
            {"mine": {"ratio": 0.8, "selector": "rel"}, "all": None},
        ),
        (
            "rel:keep_eos=false,random:ratio=0.5,other:gamma=0",
            {
                "rel": {"ratio": 0.3, "selector": "rel", "keep_eos": False},
                "random": {"ratio": 0.5, "selector": "random"},
                "other": {"ratio": 0.3, "gamma": 0},
            },
        ),
        ("mine:history=snapshot,all", {"mine": {"ratio": 0.3, "history": "snapshot"}, "all": None}),
    ],
)
def test_arms_of_the_option(text, arms):
    assert arms_of(text, {"ratio": 0.3}) == arms


@pytest.mark.parametrize(
    ("block", "ratio"),
    [
        # The first fifth of the steps trains on all tokens.
        ({}, 0.68),
        ({"ratio": 0.3, "warmup_ratio": 0.5}, 0.65),
        ({"ratio": 0.3, "warmup_selector": "attention"}, 0.3),
        # It is the arm that counts.
        ({"ratio": 0.3, "selector": "threshold"}, 0.44),
    ],
)
def test_controls_keep_as_many_tokens_as_the_selection_does_with_its_warmup(block, ratio):
    found = arms_of("sstoken,random,position,again:selector=random", block)
    assert found["random"]["ratio"] == found["position"]["ratio"] == found["again"]["ratio"] == ratio
    assert found["sstoken"].get("ratio") == block.get("ratio")


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("sstoken:ratio=0.9,random,all", 0.92),
        ("attention:ratio=0.9,random,all", 0.9),
        # Which of them, nobody can say: that of the block.
        ("sstoken:ratio=0.9,mine:ratio=0.8,random", 0.68),
        # How much a threshold keeps is known once it has run.
        ("sstoken,threshold,random,all", 0.68),
        ("threshold,random:ratio=0.95,all", 0.95),
        ("sstoken:ratio=0.9,random:ratio=0.5,all", 0.5),
    ],
)
def test_controls_keep_as_many_tokens_as_the_selection_that_is_compared(text, ratio):
    assert arms_of(text, {})["random"]["ratio"] == ratio


@pytest.mark.parametrize(
    ("block", "arms"),
    [
        (None, ["sstoken", "random", "position", "all"]),
        # How much it keeps, nobody knows yet.
        ({"selector": "threshold"}, ["threshold", "all"]),
        ({"selector": "random"}, ["random", "position", "all"]),
    ],
)
def test_without_arms_it_compares_what_the_yaml_selects_by(block, arms, tmp_path):
    found = experiment_of({**BASE, "sstoken": block}, "config.yaml", None, 1, tmp_path)
    assert [arm.name for arm in found.arms] == arms


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("random", "'random' names fewer than two arms, so that there is nothing to compare; add `all`"),
        ("all", "'all' names fewer than two arms, so that there is nothing to compare; add `sstoken`"),
        (
            "threshold,random,all",
            "does not follow from the arms beside it or from the `sstoken:` block, as of a "
            "threshold it is known once that has run; set it, as in random:ratio=0.95",
        ),
        ("rondom,all", "rondom is no selector; the nearest one is random"),
        ("sstoken:ratio=0.4,sstoken:ratio=0.8", "sstoken is there twice"),
        ("all:ratio=0.4,random", "all is plain training, which has no settings"),
        ("ratio=0.4,random", "ratio=0.4 is a setting of no arm"),
        (":ratio=0.4,random", ":ratio=0.4 is a setting of no arm"),
        ("mine:,random", "mine: has no setting"),
        ("mine:ratio=,random", "mine:ratio= has no value"),
        ("mine:ratoi=0.4,random", "mine: sstoken.ratoi is not a key; the nearest one is sstoken.ratio"),
        ("mine:ratio=2,random", "mine: sstoken.ratio: 2 is not allowed"),
        ("mine:ratio=0.5,ratio=0.9,all", "mine has ratio twice"),
        ("mine:ratio=2020-13-45,all", "the value of mine:ratio=2020-13-45 cannot be read"),
    ],
)
def test_what_is_no_arm_is_told(text, words):
    with pytest.raises(ValueError, match="--arms: ") as error:
        arms_of(text, {})
    assert words in str(error.value)


def test_a_control_has_no_share_of_a_threshold_and_none_by_chance():
    text = "one:selector=rel,ratio=0.8,two:selector=rel,ratio=0.5,random,all"
    with pytest.raises(ValueError, match="how many tokens random should keep does not follow from the arms"):
        arms_of(text, {"selector": "threshold"})


def test_a_yaml_without_evaluation_data_is_told_which_key_to_set(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**BASE, "val_set_size": 0}))
    told = CliRunner().invoke(compare_command, [str(file)])
    assert told.exit_code == 1
    assert "has no evaluation data" in told.output
    assert "val_set_size: 0.1" in told.output
    assert not (tmp_path / "model-out").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [("", "--out: it names no folder"), ("file/below", "cannot be made"), ("x" * 300, "cannot be made")],
)
def test_a_folder_that_cannot_be_is_told(out, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BASE))
    told = CliRunner().invoke(compare_command, ["config.yaml", "--out", out])
    assert told.exit_code
    assert words in told.output
    assert "damaged" not in told.output
    if out == "file/below":
        with pytest.raises(ValueError, match=f"^out: .*{out} cannot be made, or not written to"):
            write_page(parse({**WHOLE, "out": out}), tmp_path / out / "page.html")


@pytest.mark.parametrize(
    ("name", "content"), [("compare.html", "{}"), ("compare.json", "{}"), ("compare.json", '{"comparisons": [1]}')]
)
def test_a_file_that_is_none_of_ours_is_not_written_over(name, content, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BASE))
    mine = tmp_path / name
    mine.write_text(content)
    told = CliRunner().invoke(compare_command, [str(tmp_path / "config.yaml"), "--out", str(tmp_path)])
    assert told.exit_code == 1
    assert f"out: {mine} is there, and no experiment has written it" in told.output.replace("\n", "")
    assert mine.read_text() == content


def test_parts_are_none_of_collecting(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump({**WHOLE, "out": str(tmp_path)}))
    told = CliRunner().invoke(command, [str(file), "--collect", "--part", "3/2"])
    assert told.exit_code == 1
    assert "--part says which runs to have, and --collect has none" in told.output


def test_what_does_not_go_with_the_selection_is_told_before_anything_is_loaded(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**BASE, "rl": "dpo"}))
    told = CliRunner().invoke(compare_command, [str(file), "--out", str(tmp_path / "out")])
    assert told.exit_code == 1
    assert "arms.sstoken: rl: dpo trains on preferences" in told.output
    assert not (tmp_path / "out").exists()


def test_a_yaml_for_several_processes_is_refused_in_plain_arms_too(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**BASE, "deepspeed": "deepspeed_configs/zero3.json"}))
    told = CliRunner().invoke(compare_command, [str(file), "--arms", "all,sstoken", "--out", str(tmp_path / "out")])
    assert told.exit_code == 1
    assert "arms.all: deepspeed is for several processes" in told.output
    assert "history_cache" not in told.output
