"""From results to the page: what is damaged, what is missing, what is hostile, and what the sentences say."""

import dataclasses
import errno
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from material import write_page

from sstoken_plugin.experiments import conclude, have, inputs, processes, schedule
from sstoken_plugin.experiments.command import command
from sstoken_plugin.experiments.compare import as_json as as_json_of_compare
from sstoken_plugin.experiments.compare import experiment_of
from sstoken_plugin.experiments.comparison import doubts, sentence, tables_of
from sstoken_plugin.experiments.config import parse
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.experiments.numbers import as_json
from sstoken_plugin.experiments.page import Page, render
from sstoken_plugin.experiments.preparation import (
    prepared_data,
    read_preparation,
    what_was_found,
    write_preparation,
)
from sstoken_plugin.experiments.processes import Server, environment, fault_of
from sstoken_plugin.experiments.results import NAME, Result, read_json, read_result, write_json, write_result
from sstoken_plugin.experiments.runs import Runs, fingerprint_of_all, runs_of, untrained_of
from sstoken_plugin.experiments.schedule import Durations, conduct
from sstoken_plugin.experiments.worker import work
from sstoken_plugin.report.drawing.chart import ticks

HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(1)>&\u202e\x1b[2J"
LOSSES = {
    "all": [1.50, 1.52, 1.48], "random": [1.60, 1.63, 1.58], "sstoken": [1.30, 1.33, 1.29], "rel": [1.55, 1.40, 1.47],
}  # fmt: skip


@pytest.fixture
def experiment(tmp_path):
    arms = {"all": None, "random": {"selector": "random"}, "sstoken": {}, "rel": {"selector": "rel"}}
    return parse({"base": {"base_model": "model"}, "out": str(tmp_path / "out"), "arms": arms, "seeds": 3})


def result_of(run, value, **changes):
    measures = {
        "held_out/loss": Measure(value, "lower", "loss", 10),
        "held_out/ended": Measure(0.5, None, "ended", 3),
    }
    found = Result(
        run.arm.name, run.seed, run.fingerprint, run.settings, measures, {"selected_ratio": 0.6}, 4, 1.0, 2.0,
        {"torch": "2.14", "device": "CPU"},
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


@pytest.fixture
def results(experiment):
    found = [result_of(run, LOSSES[run.arm.name][run.seed - 1]) for run in runs_of(experiment)]
    for run, result in zip(runs_of(experiment), found, strict=True):
        write_result(result, run.folder)
    return found


def test_arms_are_compared_with_both_baselines_and_each_pair_once(experiment, results):
    table = tables_of(experiment, results)[0]
    pairs = [(each.arm, each.against, each.family) for each in table.comparisons]
    assert pairs == [
        ("random", "all", 3), ("sstoken", "all", 3), ("rel", "all", 3), ("sstoken", "random", 2), ("rel", "random", 2),
    ]  # fmt: skip
    told = {(each.arm, each.against): each for each in table.comparisons}
    assert told["sstoken", "all"].verdict == "helps"
    assert told["random", "all"].verdict == "hurts"
    assert told["rel", "all"].verdict == "cannot be told from chance with 3 seeds"
    for each in table.comparisons:
        low, high = each.difference.low, each.difference.high
        assert low <= each.difference.mean <= high
        assert each.verdict == ("helps" if high < 0 else "hurts" if low > 0 else told["rel", "all"].verdict)
    words = sentence(told["rel", "all"], table, 0.01)
    assert "cannot be told from chance with 3 seeds" in words
    assert f"about {told['rel', 'all'].to_tell} seeds would tell" in words


def test_a_value_that_is_not_finite_makes_no_number_and_no_verdict(experiment, results):
    broken = [
        result_of(runs_of(experiment)[0], None) if (each.arm, each.seed) == ("all", 1) else each for each in results
    ]
    table = tables_of(experiment, broken)[0]
    assert table.means["all"].mean is None
    assert {each.verdict for each in table.comparisons if each.against == "all"} == {
        "cannot be told from chance with 3 seeds: a value is not finite"
    }
    (rel,) = [each for each in table.comparisons if (each.arm, each.against) == ("rel", "all")]
    assert sentence(rel, table, 0.01) == f"rel against all {rel.verdict}."
    json.dumps(as_json(experiment, [table]), allow_nan=False)


@pytest.mark.parametrize(("value", "charts"), [(None, 0), (1.5, 2)])
def test_a_chart_is_drawn_only_where_a_value_is_finite(experiment, value, charts):
    results = [result_of(run, value) for run in runs_of(experiment)]
    table = tables_of(experiment, results)[0]
    assert render(Page("title", [table], 0.01, results, len(results), [], [], {})).count("<svg") == charts


def test_arms_without_a_common_seed_are_said_to_be_not_compared_yet(experiment, results):
    few = [result for result in results if (result.arm == "all") == (result.seed == 1)]
    (table, *_) = tables_of(experiment, few)
    told = sentence(table.comparisons[0], table, 0.01)
    assert told == "random cannot be compared with all yet: they have no seed in common."


def test_what_training_should_not_change_is_never_the_answer(experiment, results):
    evaluations = {"others": {"kind": "forgetting", "datasets": [{"path": "x"}]}, "said": {"kind": "answers"}}
    asked = parse({"base": {"base_model": "model"}, "out": "out", "arms": {"all": None}, "evaluations": evaluations})
    measures = {"others/loss": Measure(1.0, None, "", 1), "said/exact_match": Measure(1.0, "higher", "", 1)}
    found = [dataclasses.replace(result, measures=measures) for result in results]
    assert [table.name for table in tables_of(asked, found)] == ["said/exact_match", "others/loss"]


def test_the_page_says_that_arms_differ_in_more_than_the_selection_and_keeps_keys_to_itself(tmp_path):
    base = {"base_model": "model", "comet_api_key": "secret", "mlflow_tracking_uri": "secret", "hub_token": "secret"}
    arms = {"all": None, "more": {"changes": {"datasets": [{"path": "others"}], "model_api_key": "secret"}}}
    write_page(parse({"base": base, "out": str(tmp_path), "arms": arms}), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "on the same samples, but for what its `changes` say, and measured on" in page
    assert "base_model: model" in page
    assert "secret" not in page


def test_seeds_that_only_one_arm_has_are_left_out_of_pairs(experiment, results):
    some = [each for each in results if (each.arm, each.seed) != ("rel", 2)]
    (rel,) = [each for each in tables_of(experiment, some)[0].comparisons if (each.arm, each.against) == ("rel", "all")]
    assert rel.difference.count == 2
    assert rel.difference.mean == pytest.approx((0.05 - 0.01) / 2)


def test_arms_that_end_worse_than_the_untrained_model_are_named(experiment, results, tmp_path):
    untrained = untrained_of(experiment)

    def page_of(loss):
        write_result(result_of(untrained, loss), untrained.folder)
        write_page(experiment, tmp_path / "page.html")
        return (tmp_path / "page.html").read_text()

    # Means are 1.5, 1.603, 1.307 and 1.473; of less than the smallest difference of interest nothing is said.
    page = page_of(1.495)
    assert "of which less is better; 1.495 before training" in page
    assert "Worse than the model before training (1.495): random (1.603)." in page
    assert "Worse than" not in page_of(1.7)
    assert "Worse than" not in page_of(None)
    # That model is none of an arm that starts from another.
    others = tuple(dataclasses.replace(arm, changes={"base_model": "other"}) for arm in experiment.arms)
    tables = tables_of(experiment, results, result_of(untrained, 1.0))
    assert doubts(experiment, tables)
    assert not doubts(dataclasses.replace(experiment, arms=others), tables)


def test_one_seed_has_no_interval(experiment, results):
    one = [each for each in results if each.seed == 1]
    for each in tables_of(experiment, one)[0].comparisons:
        assert each.difference.low is None
        assert each.verdict == "cannot be told from chance with 1 seed"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"value": 1.5', '"value": "</script>"'),
        lambda text: text.replace('"format": 1', '"format": 99'),
        lambda text: text.replace('"kept": {', '"kept": {"x": NaN, '),
        lambda text: json.dumps({**json.loads(text), "measures": []}),
        lambda text: json.dumps({**json.loads(text), "settings": {"data": {}}}),
        lambda text: json.dumps({**json.loads(text), "settings": {"data": {}, "evaluations": {"held_out": 1}}}),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_result_is_put_aside_and_counts_as_missing(experiment, results, damage, tmp_path, caplog):
    run = runs_of(experiment)[0]
    file = run.folder / NAME
    file.write_text(damage(file.read_text()))
    assert run.result() is None
    assert (run.folder / f"{NAME}.damaged").exists()
    assert not file.exists()
    assert "is damaged" in caplog.text
    write_page(experiment, tmp_path / "page.html")
    assert "1 of 12 runs have no result of these settings yet: all, seed 1." in (tmp_path / "page.html").read_text()


def test_a_result_that_cannot_be_read_is_kept(experiment, results, monkeypatch):
    run = runs_of(experiment)[0]

    def stale(file):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", stale)
        with pytest.raises(ValueError, match=r"result.json cannot be read \(Stale file handle\)"):
            run.result()
    assert run.result() == results[0]


def test_names_of_files_that_are_no_text_come_back(experiment):
    run = runs_of(experiment)[0]
    settings = {**run.settings, "data": {os.fsdecode(b"donn\xe9es.jsonl"): "digest"}}
    found = result_of(run, 1.0, settings=settings)
    write_result(found, run.folder)
    assert read_result(run.folder) == found
    assert read_json(run.folder / NAME)["settings"] == settings


def test_a_loss_that_is_not_finite_is_named(experiment, results, tmp_path):
    run = runs_of(experiment)[4]
    write_result(result_of(run, None), run.folder)
    write_page(experiment, tmp_path / "page.html")
    assert f"The loss is no finite number after {run.name}: the training diverged" in (
        tmp_path / "page.html"
    ).read_text(encoding="utf-8")


def test_where_there_is_no_difference_seeds_that_would_tell_one_are_said_in_a_whole_sentence(experiment):
    values = {"all": [1.5, 1.52, 1.48], "rel": [1.51, 1.51, 1.48]}
    found = [
        result_of(run, values[run.arm.name][run.seed - 1]) for run in runs_of(experiment) if run.arm.name in values
    ]
    table = tables_of(experiment, found)[0]
    (comparison,) = [each for each in table.comparisons if (each.arm, each.against) == ("rel", "all")]
    assert comparison.to_tell is None
    told = sentence(comparison, table, 0.01)
    assert told.endswith(f"; about {comparison.to_tell_smallest} seeds would tell a difference of 0.01.")


def test_shares_are_of_the_seeds_that_the_losses_are_of(tmp_path):
    yaml_of_base = {"base_model": "m", "datasets": [{"path": "nowhere", "type": "alpaca"}], "val_set_size": 0.1}
    compared = experiment_of(yaml_of_base, "config.yaml", "rel,all", 2, tmp_path)
    first, *others = runs_of(compared)
    write_result(result_of(first, 1.0), first.folder)
    tables = tables_of(compared, [first.result()])
    # Another process has more while this one writes.
    for run in others:
        write_result(result_of(run, 2.0), run.folder)
    found = as_json_of_compare(runs_of(compared), compared, tables)["arms"][first.arm.name]
    assert (found["seeds"], found["eval_loss"], found["kept"]) == ([1], [1.0], [0.6])


def test_a_small_difference_is_no_zero(experiment):
    results = [
        result_of(run, 0.0004 + 0.000012 * (run.arm.name == "rel") + 0.0000001 * run.seed * (run.arm.name == "all"))
        for run in runs_of(experiment)
    ]
    table = tables_of(experiment, results)[0]
    (told,) = [sentence(each, table, 0.01) for each in table.comparisons if (each.arm, each.against) == ("rel", "all")]
    assert told.startswith("rel hurts against all (+1.2e-05 on average over 3 seeds, 95 % interval +1.1e-05 to ")


def test_a_log_without_shares_is_not_taken_for_all_tokens(experiment, results, tmp_path):
    for run in runs_of(experiment):
        write_result(result_of(run, 1.0, kept={}), run.folder)
    write_page(experiment, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("all tokens") == 0  # no arm has a share, so that there is no such column
    run = runs_of(experiment)[2]
    write_result(result_of(run, 1.0), run.folder)
    write_page(experiment, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("all tokens") == 1


def test_held_out_data_that_an_arm_trains_on_are_not_called_new(experiment, results, tmp_path):
    told = "which no arm trains on"
    found = {"samples": {"all": 9}, "held_out": {"held_out": 5}, "shared": {}}
    known = fingerprint_of_all(runs_of(experiment))
    # What was found of other settings says nothing.
    for fingerprint, shared, is_told in ((known, {}, True), (known, {"all/held_out": 2}, False), ("other", {}, False)):
        write_preparation(experiment.out, known, found)
        (file,) = experiment.out.glob("prepared-*.json")
        write_json({**found, "shared": shared, "fingerprint": fingerprint}, file)
        write_page(experiment, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert (told in page) == is_told
        assert ("2 of the 5 samples" in page) == bool(shared)


def test_a_result_is_of_the_arm_that_its_folder_names(experiment, results, tmp_path):
    runs = experiment.out / "runs"
    (runs / "rel").rename(runs / "renamed")
    arms = tuple(dataclasses.replace(arm, name=arm.name.replace("rel", "renamed")) for arm in experiment.arms)
    renamed = dataclasses.replace(experiment, arms=arms)
    assert all(run.result() is not None for run in runs_of(renamed))
    write_page(renamed, tmp_path / "page.html")
    assert "renamed cannot be compared" not in (tmp_path / "page.html").read_text()
    numbers = read_json(tmp_path / "page.json")
    assert numbers["tables"][0]["arms"]["renamed"]["seeds"] == [1, 2, 3]


def test_results_are_collected_where_the_data_are_not(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("one")
    whole = {"base": {"base_model": "m", "datasets": [{"path": str(file)}]}, "out": str(tmp_path), "arms": {"all": {}}}
    for run in runs_of(parse(whole)):
        digest = "another" if run.seed == 3 else run.settings["data"][str(file)]
        settings = {**run.settings, "data": {str(file): digest}}
        write_result(result_of(run, 1.0, settings=settings), run.folder)
    assert [run.result() is not None for run in runs_of(parse(whole))] == [True, True, False]
    file.unlink()
    assert all(run.result() for run in runs_of(parse(whole)))
    # Nor is it asked for another folder, or to remove what is finished.
    Runs.of(parse(whole)).refuse_other_settings()
    write_page(parse(whole), tmp_path / "page.html")
    assert f"different versions of: {file}." in (tmp_path / "page.html").read_text()


def test_results_of_a_base_that_was_made_anew_do_not_count(tmp_path):
    weights = tmp_path / "base" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    experiment = parse({"base": {"base_model": str(weights.parent)}, "out": str(tmp_path), "arms": {"all": None}})
    for run in runs_of(experiment):
        write_result(result_of(run, 1.0), run.folder)
    assert all(run.result() for run in runs_of(experiment))
    weights.write_bytes(b"second")
    assert not any(run.result() for run in runs_of(experiment))


def test_a_run_that_was_killed_says_so_and_not_the_last_line_of_its_log(experiment):
    run = runs_of(experiment)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "log.txt").write_text("harmless")
    assert "all, seed 1 failed: its process was killed by signal 9" in fault_of(run, -9)
    assert "harmless" in fault_of(run, 1)


def test_a_run_for_which_the_disk_has_no_room_says_so_and_not_the_last_line_of_its_log(experiment, monkeypatch):
    run = runs_of(experiment)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "log.txt").write_text("harmless")
    monkeypatch.setattr(processes, "_ROOM", 2**80)
    told = fault_of(run, 1)
    assert f"the disk of {run.folder} is full; make room, and give the same command again." in told
    assert "harmless" not in told


def test_what_was_found_is_told_where_the_page_cannot_be_written(experiment, results, tmp_path, monkeypatch, capsys):
    def full(content, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conclude, "write_bytes", full)
    with pytest.raises(ValueError, match=r"^out: page and numbers cannot be written to .* \(No space left on device\)"):
        write_page(experiment, tmp_path / "page.html")
    assert "sstoken helps against all (" in capsys.readouterr().out


def test_data_that_change_while_runs_go_on_are_told_and_their_results_shown(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    whole = {"base": {"base_model": "m", "datasets": [{"path": str(data)}]}, "out": str(tmp_path), "arms": {"all": {}}}
    asked = Runs.of(parse(whole))
    for run in asked.trainings:
        write_result(result_of(run, 1.0), run.folder)
    data.write_text("two")
    files = conclude.Files(tmp_path / "page.html", "title", tmp_path / "page.json", as_json)
    conclude.conclude(parse(whole), asked, files)
    told = f"{data} changed while this command went on: its results count as of what was there before"
    assert f"Warning: {told}" in capsys.readouterr().out
    page = files.page.read_text()
    assert told in page
    assert "3 of 3 runs" in page
    write_page(parse(whole), files.page)
    assert "changed while" not in files.page.read_text()


def test_data_that_cannot_be_read_any_more_cost_no_page(tmp_path, monkeypatch, capsys):
    (tmp_path / "data.jsonl").write_text("one")
    base = {"base_model": "m", "datasets": [{"path": str(tmp_path / "data.jsonl")}]}
    experiment = parse({"base": base, "out": str(tmp_path), "arms": {"all": {}}})
    asked = Runs.of(experiment)
    for run in asked.trainings:
        write_result(result_of(run, 1.0), run.folder)

    def gone(file, *others):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inputs, "_digest_of", gone)
    files = conclude.Files(tmp_path / "page.html", "title", tmp_path / "page.json", as_json)
    conclude.conclude(experiment, asked, files)
    assert "Whether data have changed while this command went on is not known" in capsys.readouterr().out
    assert "3 of 3 runs" in files.page.read_text()


def test_runs_that_are_missing_are_told_with_the_answer(experiment, results, tmp_path, capsys):
    (runs_of(experiment)[0].folder / NAME).unlink()
    write_page(experiment, tmp_path / "page.html")
    assert "Warning: 1 of 12 runs have no result of these settings yet: all, seed 1." in capsys.readouterr().out


def test_a_page_of_other_settings_is_not_written_over(experiment, results, tmp_path):
    settings = {"base": {"base_model": "model"}, "out": str(tmp_path / "out"), "arms": {"all": None}, "seeds": 3}
    file, page = tmp_path / "experiment.yaml", tmp_path / "out" / "page.html"
    file.write_text(yaml.safe_dump(settings))
    assert CliRunner().invoke(command, [str(file), "--collect"], catch_exceptions=False).exit_code == 0
    before = page.read_text()
    file.write_text(yaml.safe_dump({**settings, "changes": {"learning_rate": 0.03}}))
    told = CliRunner().invoke(command, [str(file), "--collect"])
    assert told.exit_code == 1
    assert "holds a run of other settings (" in told.output
    assert page.read_text() == before
    # Of one arm alone it is none of a page that has the others.
    arms = {"all": None, "rel": {"selector": "rel", "ratio": 0.5}}
    file.write_text(yaml.safe_dump({**settings, "arms": arms}))
    told = CliRunner().invoke(command, [str(file), "--collect"], catch_exceptions=False)
    assert told.exit_code == 0
    assert "3 of 6 runs have no result of these settings yet: rel, seed 1, rel, seed 2, rel, seed 3." in told.output


def test_a_command_of_other_settings_that_came_late_takes_nothing_of_a_run(experiment, results):
    (run, *_) = runs_of(experiment)
    job = {"folder": str(run.folder), "arm": "all", "seed": 1, "fingerprint": "other"}
    job["settings"] = {**run.settings, "seed": 2}
    with pytest.raises(ValueError, match="holds a run of other settings"):
        work(job)
    assert run.result() == results[0]
    assert "holds a run of other settings" in (run.folder / "fault.txt").read_text()


class Ended:
    """A server whose jobs end at once: each is done by a function, which returns the exit code."""

    def __init__(self, do):
        self.do, self.jobs = do, []

    def start(self, job):
        self.jobs.append(job)
        self.code = self.do(job)
        return self

    def poll(self, seconds):
        return self.code

    def wait(self):
        return self.code


def test_two_commands_with_other_arms_may_look_at_the_same_data_at_a_time(experiment):
    def look(job):
        write_preparation(experiment.out, job["fingerprint"], {"folders": [str(experiment.out / "prepared")]})
        # Of another command, which has begun to look at the same data.
        write_preparation(experiment.out, "other", {"folders": []})
        return 0

    runs = runs_of(experiment)
    found = processes.prepared(Ended(look), experiment, runs, measure=False)
    assert found["fingerprint"] == fingerprint_of_all(runs)
    assert what_was_found(experiment.out, "other") is not None


@pytest.mark.parametrize(
    ("phase", "seconds", "code", "skipped"),
    [
        ("start", 0.0, 1, True),
        ("start", 3.0, 1, False),
        ("training", 0.0, 1, False),
        ("start", 0.0, -9, False),
        (None, 0.0, 1, False),
    ],
    ids=["at once", "with a checkpoint", "in the first step", "killed", "before it said anything"],
)
def test_an_arm_that_cannot_begin_is_not_begun_with_each_seed(experiment, phase, seconds, code, skipped, monkeypatch):
    monkeypatch.setattr(schedule, "_ENOUGH", 100)
    stale = {"phase": "start", "done": 0, "total": 0, "seconds": 0.0}
    for run in runs_of(experiment):
        write_json(stale, run.folder / "progress.json")

    def fail(job):
        if job["arm"] != "random":
            (run,) = [run for run in runs_of(experiment) if (run.arm.name, run.seed) == (job["arm"], job["seed"])]
            write_result(result_of(run, 1.0), run.folder)
            return 0
        if phase is not None:
            write_json({**stale, "phase": phase, "seconds": seconds}, Path(job["folder"]) / "progress.json")
        return code

    lines = []
    faults = conduct(server := Ended(fail), experiment, runs_of(experiment), Durations(), lines.append)
    assert [job["seed"] for job in server.jobs if job["arm"] == "random"] == ([1] if skipped else [1, 2, 3])
    assert len(server.jobs) == (10 if skipped else 12)
    assert len(faults) == (1 if skipped else 3)
    told = "It had not begun to train: random, seed 2, random, seed 3 are not begun, lest they fail alike."
    assert (told in lines) == skipped


def test_no_training_is_begun_where_the_model_before_it_cannot_be_measured(experiment):
    untrained, lines = untrained_of(experiment), []
    runs = [untrained, *runs_of(experiment)]
    for run in runs:
        run.folder.mkdir(parents=True)
    faults = conduct(server := Ended(lambda job: 1), experiment, runs, Durations(), lines.append)
    assert [job["arm"] for job in server.jobs] == ["untrained"]
    assert len(faults) == 1
    assert lines[-1] == "Every run is measured as this one is: no training is begun."
    # Killed, as where memory runs out for a while, it says nothing of the others.
    conduct(server := Ended(lambda job: -9), experiment, runs, Durations(), lines.append)
    assert len(server.jobs) == 3


def test_who_stops_an_experiment_is_told_that_it_goes_on(experiment, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(have, "prepared", lambda *arguments, measure: {})
    monkeypatch.setattr(have, "conduct", stopped)
    with pytest.raises(KeyboardInterrupt):
        have.have(experiment, Runs.of(experiment))
    assert capsys.readouterr().out.endswith("Stopped. The same command goes on where it was.\n")


def test_steps_that_are_not_known_are_not_told_as_none(experiment, results, tmp_path):
    for run in runs_of(experiment):
        if run.arm.name == "random":
            write_result(result_of(run, 1.0, steps=0), run.folder)
    write_page(experiment, tmp_path / "page.html")
    rows = re.findall(r"<tr>(<td>.*?</td>)</tr>", (tmp_path / "page.html").read_text().split("What each arm kept")[1])
    steps = {row[0]: row[-2] for row in (re.findall(r"<td>(.*?)</td>", row) for row in rows[:4])}
    assert steps == {"all": "4", "random": "", "sstoken": "4", "rel": "4"}


def test_what_another_process_has_had_is_not_counted_as_left(experiment):
    runs = runs_of(experiment)[:4]

    def train(job):
        (run,) = [run for run in runs if run.arm.name == job["arm"]]
        # Meanwhile another process has had the two that follow.
        for each in runs[:3] if run == runs[0] else [run]:
            write_result(result_of(each, 1.0, seconds=60.0), each.folder)
        return 0

    lines = []
    assert conduct(server := Ended(train), experiment, runs, Durations(), lines.append) == []
    assert [job["arm"] for job in server.jobs] == ["all", "rel"]
    assert lines == ["[1/4] all, seed 1: done in 60 s; about 60 s left.", "[4/4] rel, seed 1: done in 60 s."]


def test_a_server_that_ends_is_told_by_what_it_printed(experiment, monkeypatch):
    run = runs_of(experiment)[0]
    monkeypatch.setenv("PYTHONPATH", str(run.folder))
    run.folder.mkdir(parents=True)
    (run.folder / "multiprocessing.py").write_text("raise ImportError('libcudart.so.12: cannot open')")
    (run.folder / "fault.txt").write_text("of an attempt before")
    job = {"kind": "run", "log": str(run.folder / "log.txt")}
    with Server() as server:
        for _ in range(2):
            code = server.start(job).wait()
            assert "libcudart.so.12: cannot open." in fault_of(run, code)
            # As if it had not been seen that it has ended.
            monkeypatch.setattr(server._process, "poll", lambda: None)


def test_a_run_sees_one_gpu():
    seen = [
        environment(own)["CUDA_VISIBLE_DEVICES"] for own in ({}, *({"CUDA_VISIBLE_DEVICES": v} for v in ("2,3", "")))
    ]
    assert seen == ["0", "2", ""]


def test_a_result_comes_back_as_it_was(experiment, results):
    for run, result in zip(runs_of(experiment), results, strict=True):
        assert read_result(run.folder) == result


def test_a_result_of_other_settings_is_none_of_this_experiments(experiment, results):
    run = runs_of(experiment)[0]
    settings = {**run.settings, "train": {**run.settings["train"], "learning_rate": 3}}
    write_result(result_of(run, 1.0, settings=settings), run.folder)
    assert run.result() is None
    write_json({"fingerprint": "other", "settings": settings}, run.folder / "run.json")
    with pytest.raises(ValueError, match=r"train\.learning_rate was 3 and is not there"):
        run.refuse_other_settings()


def test_nothing_of_the_data_acts_on_the_page(experiment, results, browser, tmp_path):
    hostile = [
        dataclasses.replace(
            each,
            measures={f"{HOSTILE}/loss": Measure(each.seed, "lower", HOSTILE, 1), **each.measures},
            versions={HOSTILE: HOSTILE},
        )
        for each in results
    ]
    page = Page(
        HOSTILE, tables_of(experiment, hostile), 0.01, hostile, 12, [HOSTILE], [HOSTILE], {HOSTILE: [HOSTILE]}, HOSTILE
    )
    text = render(page)
    assert "<script" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    file = tmp_path / "page.html"
    file.write_text(text)
    browser.errors()
    browser.driver.get(file.as_uri())
    assert browser.run("return document.scripts.length + document.images.length") == 0
    assert browser.text("h1").startswith("</style><script>alert(1)")
    assert browser.errors() == []


def test_the_page_reads_without_a_log(experiment, results, tmp_path):
    write_page(experiment, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "sstoken helps against all (" in text
    assert "12 of 12 runs, with 3 seeds." in text
    assert "sstoken helps against random" in text
    assert "0.6000" in text
    assert "2.14" in text


def test_runs_that_are_there_are_collected(experiment, results, tmp_path):
    arms = {"all": None, "random": {"selector": "random"}, "sstoken": {}, "rel": {"selector": "rel"}}
    settings = {"base": {"base_model": "model"}, "out": str(tmp_path / "out"), "arms": arms, "seeds": 4}
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings))
    told = CliRunner().invoke(command, [str(file), "--collect"], catch_exceptions=False)
    assert told.exit_code == 0
    assert "sstoken helps against all (" in told.output
    assert "4 of 16 runs have no result of these settings yet" in (tmp_path / "out" / "page.html").read_text()
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    table = found["tables"][0]
    assert (table["measure"], table["arms"]["rel"]["values"]) == ("held_out/loss", LOSSES["rel"])
    assert {each["verdict"] for each in table["comparisons"]} >= {"helps", "hurts"}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.013, 0.02), (1.4999, 1.5001), (-1e6, 1e6)])
def test_ticks_are_round_numbers_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low <= tick <= high for tick in found)


def test_prepared_data_that_were_left_half_written_are_not_taken_for_whole(tmp_path):
    folder = tmp_path / "prepared/1f"
    written = folder / "rows.arrow"
    with prepared_data([folder]):
        written.write_text("whole")
    write_preparation(tmp_path, "settings", {"folders": [str(folder)], "samples": {}})
    assert read_preparation(tmp_path, "settings") is not None
    assert read_preparation(tmp_path, "others") is None

    # For another evaluation: what is there can be used, also after a fault, until a write to it is cut.
    def fail_to_prepare(more):
        with prepared_data([folder]):
            assert written.exists()
            assert read_preparation(tmp_path, "settings") is None
            for name in more:
                (folder / name).write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail_to_prepare([])
    assert read_preparation(tmp_path, "settings") is not None
    with pytest.raises(OSError, match="full"):
        fail_to_prepare(["more.arrow"])
    assert read_preparation(tmp_path, "settings") is None
    with prepared_data([folder]):
        assert not written.exists()
