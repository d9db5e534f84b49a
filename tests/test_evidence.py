"""The known-truth evidence: the truth of its data, what is measured of noise, and that measuring changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from evidence import collect, corrupt, course, known_truth, noise, real, reference, restore, table, tasks  # noqa: E402
from evidence.arms import LATE_SEEDS  # noqa: E402
from evidence.base import Recipe, tokenizer  # noqa: E402
from evidence.collected import other_settings  # noqa: E402
from sstoken_plugin.experiments.config import parse, read  # noqa: E402
from sstoken_plugin.experiments.measures import Measure  # noqa: E402
from sstoken_plugin.experiments.numbers import settings_of  # noqa: E402
from sstoken_plugin.experiments.results import Result, write_json, write_result  # noqa: E402
from sstoken_plugin.experiments.runs import runs_of  # noqa: E402
from sstoken_plugin.selection.samples import IGNORE_INDEX, BatchLayout  # noqa: E402

TRAINED, HELD_OUT = 1000, 100
# Of a base that knows nothing.
UNLEARNT = Recipe(steps=1, most_steps=0, probed=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    known_truth.write_data(folder, TRAINED, HELD_OUT)
    return folder


def samples(file):
    """Read a file as Axolotl does: token ids and labels, each [samples, WIDTH]."""
    words = tokenizer()
    ids, labels = [], []
    for line in file.read_text().splitlines():
        parts = [(part["label"], words.encode(part["text"])) for part in json.loads(line)["segments"]]
        ids.append([token for _, tokens in parts for token in tokens])
        labels.append([token if label else IGNORE_INDEX for label, tokens in parts for token in tokens])
    return np.array(ids), np.array(labels)


def digits(text):
    return [int(word) for word in text.split() if word.isdecimal()]


@pytest.mark.parametrize(("task", "weights"), [("new", (1, 1, 0)), ("known", (1, -1, 0)), ("half", (3, 1, 0))])
def test_clean_answers_follow_from_the_text_of_the_prompt(data, task, weights):
    a, b, c = weights
    for file in (f"{task}-held-out.jsonl", f"{task}-noise00.jsonl"):
        for line in (data / file).read_text().splitlines():
            prompt, answer = json.loads(line)["segments"]
            assert prompt["text"].split()[:2] == ["<s>", task]
            assert answer["text"].endswith(" </s>")
            x = digits(prompt["text"])
            expected = [(a * one + b * other + c) % 16 for one, other in pairwise(x)]
            assert digits(answer["text"]) == expected


@pytest.mark.parametrize("task", known_truth.TASKS)
def test_noise_is_as_much_as_asked_for_and_always_another_digit(data, task):
    clean, _ = samples(data / f"{task}-noise00.jsonl")
    before = np.zeros((TRAINED, tasks.ANSWER_DIGITS), bool)
    for level in known_truth.LEVELS:
        ids, labels = samples(data / f"{task}-noise{level:02d}.jsonl")
        found = tasks.is_noise(ids)
        # Five standard deviations of a share of 10,000 digits.
        assert found.mean() == pytest.approx(level / 100, abs=0.025)
        # The same samples but for the noise, which is other than the truth, and all that a lower level has.
        assert ((ids != clean)[:, tasks.ANSWER_PLACE : tasks.END_PLACE] == found).all()
        assert ((ids != clean).sum(1) == found.sum(1)).all()
        assert (found | ~before).all()
        before = found
        assert (labels[:, : tasks.ANSWER_PLACE] == IGNORE_INDEX).all()
        assert (labels[:, tasks.ANSWER_PLACE :] == ids[:, tasks.ANSWER_PLACE :]).all()
    off = (ids - clean)[:, tasks.ANSWER_PLACE : tasks.END_PLACE][found] % tasks.MODULUS
    counts = np.bincount(off, minlength=tasks.MODULUS)
    assert counts[0] == 0
    # Uniform over the fifteen others: five standard deviations.
    assert counts[1:] == pytest.approx(found.sum() / 15, abs=5 * (found.sum() / 15) ** 0.5)


def test_the_oracle_learns_from_all_but_the_noise(data):
    ids, labels = samples(data / "new-noise20-masked.jsonl")
    assert (ids == samples(data / "new-noise20.jsonl")[0]).all()
    learnt = labels != IGNORE_INDEX
    assert (learnt[:, tasks.ANSWER_PLACE : tasks.END_PLACE] == ~tasks.is_noise(ids)).all()
    assert learnt[:, tasks.END_PLACE].all()
    assert not learnt[:, : tasks.ANSWER_PLACE].any()


def test_no_prompt_is_both_trained_on_and_held_out(data):
    prompts = {}
    for file in data.glob("*.jsonl"):
        lines = file.read_text().splitlines()
        prompts[file.stem] = {tuple(digits(json.loads(line)["segments"][0]["text"])) for line in lines}
        assert len(prompts[file.stem]) == len(lines)
    held_out = set.union(*(found for name, found in prompts.items() if name.endswith("held-out")))
    trained = set.union(*(found for name, found in prompts.items() if not name.endswith("held-out")))
    assert len(held_out) == 4 * HELD_OUT
    assert not held_out & trained
    of_base = tasks.prompts(500, np.random.default_rng(0), held_out=False)
    assert not set(map(tuple, of_base.tolist())) & held_out


def test_what_is_no_sample_of_the_tasks_is_refused(data):
    ids, labels = samples(data / "new-noise20-masked.jsonl")
    with pytest.raises(ValueError, match="no samples of the tasks"):
        tasks.is_noise(ids[:, 1:])
    with pytest.raises(ValueError, match="has no label"):
        noise.NoiseWatch(torch.from_numpy(ids), torch.from_numpy(labels), lambda: 0, 1)


def watched(data, kept_by, steps=4):
    """What is measured where the first 8 * `steps` samples are trained on, 8 a step in another order."""
    ids, labels = (torch.from_numpy(array) for array in samples(data / "new-noise20.jsonl"))
    now = SimpleNamespace(step=0)
    watch = noise.NoiseWatch(ids, labels, lambda: now.step, steps)
    generator = torch.Generator().manual_seed(0)
    signals = []
    for now.step in range(steps):
        own = torch.arange(8 * now.step, 8 * now.step + 8).flip(0)
        layout = BatchLayout.of({"input_ids": ids[own], "labels": labels[own]})
        rel, current = (torch.randn(len(layout.position), generator=generator) for _ in range(2))
        wrong = torch.from_numpy(tasks.is_noise(ids[own].numpy()))
        kept = torch.nn.functional.pad(kept_by(wrong), (0, 1), value=True).flatten()
        # As in a run: REL is not measured in every step.
        scores = SimpleNamespace(rel=rel if now.step % 2 else None, attention=None, current=current)
        watch(SimpleNamespace(layout=layout, scores=scores, kept=kept))
        signals.append((wrong, rel.view(8, -1)[:, :-1], current.view(8, -1)[:, :-1]))
    return watch.found(), signals


def test_precision_and_recall_of_a_made_up_selection(data):
    def first_five(wrong):
        kept = torch.zeros_like(wrong)
        kept[:, :5] = True
        return kept

    found, signals = watched(data, first_five)
    wrong = torch.cat([marks for marks, _, _ in signals])
    whole = found["whole"]
    assert (whole["digits"], whole["noise"], whole["dropped"]) == (320, int(wrong.sum()), 160)
    assert whole["dropped_noise"] == int(wrong[:, 5:].sum())
    assert whole["precision"] == pytest.approx(wrong[:, 5:].float().mean().item())
    assert whole["recall"] == pytest.approx((wrong[:, 5:].sum() / wrong.sum()).item())
    assert whole["noise_among_kept"] == pytest.approx(wrong[:, :5].float().mean().item())
    assert [(point["first_step"], point["last_step"]) for point in found["points"]] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    for point, (marks, _, _) in zip(found["points"], signals, strict=True):
        assert point["noise"] == int(marks.sum())
        assert point["dropped_noise"] == int(marks[:, 5:].sum())


def test_a_selection_that_knows_the_truth_is_perfect_and_one_that_keeps_all_drops_nothing(data):
    whole = watched(data, lambda wrong: ~wrong)[0]["whole"]
    assert (whole["precision"], whole["recall"], whole["noise_among_kept"]) == (1, 1, 0)
    whole = watched(data, torch.ones_like)[0]["whole"]
    assert (whole["dropped"], whole["precision"], whole["recall"]) == (0, None, 0)


def chance_above(pairs):
    """The chance that the first of a pair is above the second, counted pair by pair."""
    won = [1.0 if clean > noisy else 0.5 if clean == noisy else 0.0 for clean, noisy in pairs]
    return sum(won) / len(won)


def pairs_of(values, wrong):
    return [(clean, noisy) for clean in values[~wrong].tolist() for noisy in values[wrong].tolist()]


def test_auc_counts_pairs_of_all_samples_and_of_each(data):
    found, signals = watched(data, lambda wrong: ~wrong)
    marks, rels, currents = (torch.cat(parts) for parts in zip(*signals, strict=True))
    odd = torch.cat([torch.full((8,), bool(step % 2)) for step in range(4)])
    whole = found["whole"]
    assert whole["auc"]["rel"] == pytest.approx(chance_above(pairs_of(rels[odd], marks[odd])))
    assert whole["auc"]["current"] == pytest.approx(chance_above(pairs_of(-currents, marks)))
    within = [pair for value, wrong in zip(rels[odd], marks[odd], strict=True) for pair in pairs_of(value, wrong)]
    assert whole["auc_in_sample"]["rel"] == pytest.approx(chance_above(within))
    assert whole["auc"]["attention"] is whole["auc_in_sample"]["attention"] is None
    assert found["points"][0]["auc"]["rel"] is None


def test_auc_counts_ties_by_half():
    values, wrong = np.array([[1, 1, 2, 0]], np.float32), np.array([[False, True, False, False]])
    assert noise.auc(values, wrong) == noise.auc_in_sample(values, wrong) == pytest.approx((0.5 + 1 + 0) / 3)
    assert noise.auc(values, np.zeros((1, 4), bool)) is None


@pytest.mark.parametrize(("steps", "points"), [(245, noise.POINTS), (3, 3), (61, noise.POINTS)])
def test_points_cover_every_step_once(steps, points):
    spans = {}
    for step in range(steps):
        spans.setdefault(step * noise.POINTS // steps, []).append(step + 1)
    watch = noise.NoiseWatch.__new__(noise.NoiseWatch)
    watch._max_steps = steps
    empty = noise.Seen(*np.zeros((2, 1, tasks.ANSWER_DIGITS), bool), {})
    watch._seen = {point: [empty] for point in spans}
    told = [(point["first_step"], point["last_step"]) for point in watch.found()["points"]]
    assert told == [(own[0], own[-1]) for own in spans.values()]
    assert len(told) == points


def test_every_experiment_is_one_that_the_harness_takes():
    found = {name: parse(block) for name, block in known_truth.experiments(Path("out"), [1, 2, 3, 4, 5]).items()}
    for task in known_truth.TASKS:
        for level in known_truth.LEVELS:
            arms = {arm.name for arm in found[known_truth.name_of(task, level)].arms}
            assert arms >= {"all", "random", "sstoken", "paper", "authors", "tailsft", "reference"}
            assert ("oracle" in arms) == (level > 0)
        for level in known_truth.SETTINGS_LEVELS:
            settings = found[f"{known_truth.name_of(task, level)}-settings"]
            assert settings.seeds == (1, 2, 3)
            blocks = [json.dumps(arm.sstoken) for arm in settings.arms]
            assert len(set(blocks)) == len(blocks)
        for level in known_truth.CONFIRMED_LEVELS:
            confirms, later = (
                found[f"{known_truth.name_of(task, level)}{of}-confirmation"] for of in ("", "-settings")
            )
            assert len({*confirms.seeds, *later.seeds, *LATE_SEEDS, *known_truth.SEEDS}) == 20
            assert {arm.name for arm in later.arms} > {*known_truth.AGAINST}
            assert {arm.name for arm in confirms.arms} >= {*known_truth.AGAINST, "sstoken", "threshold"}
        for level in known_truth.LATE_LEVELS:
            begins_late(found[f"{known_truth.name_of(task, level)}-late"], "threshold", "threshold-0.01")


def begins_late(experiment, *thresholds):
    """Assert that an experiment has each of the thresholds twice, and that one of them begins late."""
    assert experiment.seeds == LATE_SEEDS
    arms = {arm.name: arm.sstoken for arm in experiment.arms}
    assert {name.removesuffix("-late") for name in arms} == {*known_truth.AGAINST, *thresholds}
    for name in thresholds:
        assert arms[f"{name}-late"] == {**arms[name], "warmup_ratio": 0.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything, but for a base that has learnt next to nothing, and few samples."""
    folder = tmp_path_factory.mktemp("made")
    known_truth.write(folder, [101, 102], UNLEARNT, trained=96, held_out=8, reference_steps=2)
    return folder


def test_a_base_is_made_once_and_again_for_another_recipe(made, tmp_path):
    first = json.loads((made / "base/made.json").read_text())
    assert known_truth.make(made / "base", UNLEARNT) == first
    again = known_truth.make(tmp_path, UNLEARNT)
    assert again["weights_sha256"] == first["weights_sha256"]
    other = known_truth.make(tmp_path, replace(UNLEARNT, seed=1))
    assert other["weights_sha256"] != first["weights_sha256"]


def test_a_reference_is_trained_on_clean_samples_and_made_again_for_another_base(made, tmp_path):
    shutil.copytree(made / "base", tmp_path / "base")
    first = reference.make_reference(tmp_path / "new", tmp_path / "base", "new", 30)
    before = json.loads((tmp_path / "base/made.json").read_text())["knows"]["new"]
    assert first["loss"] < before["loss"]
    written = (tmp_path / "new/model.safetensors").stat().st_mtime_ns
    assert reference.make_reference(tmp_path / "new", tmp_path / "base", "new", 30) == first
    assert (tmp_path / "new/model.safetensors").stat().st_mtime_ns == written
    known_truth.make(tmp_path / "base", replace(UNLEARNT, seed=1))
    assert reference.make_reference(tmp_path / "new", tmp_path / "base", "new", 30) != first


def test_training_is_the_same_bit_for_bit_while_noise_is_measured(made, train, tmp_path):
    base = known_truth.experiments(made, [101])["new-noise20"]["base"]
    runs = {}
    for name, plugins in {"watched": base["plugins"], "alone": []}.items():
        runs[name] = train(
            {
                **base,
                "plugins": [*plugins, "sstoken_plugin.SSTokenPlugin"],
                "sstoken": {"report": False, "warmup_ratio": 0.4, "warmup_selector": "attention"},
                "output_dir": str(tmp_path / name),
                "dataset_prepared_path": str(tmp_path / "prepared"),
                "logging_steps": 1,
                "save_strategy": "no",
            }
        )
    assert runs["watched"].losses == runs["alone"].losses
    for name, weight in runs["watched"].weights.items():
        assert torch.equal(weight, runs["alone"].weights[name])
    assert not (tmp_path / "alone" / noise.NAME).exists()
    found = json.loads((tmp_path / "watched" / noise.NAME).read_text())
    assert len(found["points"]) == 3
    ids, _ = samples(made / "data/new-noise20.jsonl")
    whole = found["whole"]
    assert (whole["digits"], whole["noise"]) == (960, int(tasks.is_noise(ids).sum()))
    # The end of the turn is always kept, of the seven tokens of a sample.
    assert whole["dropped"] == 96 * 4
    assert all(whole["auc"][signal] is not None for signal in noise.SIGNALS)


def test_real_models_compute_in_bfloat16_and_keep_their_weights_in_float32(made, train, tmp_path):
    base = known_truth.experiments(made, [101])["new-noise20"]["base"]
    common = {**base, "dataset_prepared_path": str(tmp_path / "prepared"), "save_strategy": "no", "logging_steps": 1}
    plain = train({**common, "plugins": [], "output_dir": str(tmp_path / "plain")})
    cast = train({**common, "plugins": real.TRAINING["plugins"], "output_dir": str(tmp_path / "cast")})
    assert all(weight.dtype == torch.float32 for weight in cast.weights.values())
    assert cast.losses == pytest.approx(plain.losses, abs=0.02)
    assert cast.losses != plain.losses


def test_results_are_collected_with_the_intervals_of_the_harness(made, tmp_path, capsys):
    file = made / "experiments/new-noise20.yaml"
    runs = [run for run in runs_of(read(file)) if run.arm.name in ("all", "random", "sstoken")]
    for place, run in enumerate(runs):
        value = 0.5 + 0.001 * place**2 - (0.2 if run.arm.name == "sstoken" else 0)
        write_result(
            Result(
                run.arm.name, run.seed, run.fingerprint, run.settings,
                {"held_out/loss": Measure(value, "lower", "loss", 5632)}, {}, 3, 20.0, 30.0 + place, {"torch": "2"},
            ),
            run.folder,
        )  # fmt: skip
        if run.arm.name == "sstoken":
            point = {"first_step": 1, "last_step": 3, "recall": 0.5 + 0.1 * place, "auc": {"rel": None}}
            write_json({"points": [point], "whole": point}, run.folder / "out" / noise.NAME)
    collect.main([str(file), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "new-noise20.json").read_text())
    assert (found["runs"], found["runs_asked"]) == (6, len(runs_of(read(file))))
    assert found["base"]["knows"].keys() == tasks.RULES.keys()
    assert found["measures"]["held_out/loss"]["arms"]["all"] == {
        "seeds": [101, 102], "values": [0.5, 0.509], "mean": 0.5045, "count": 2,
        "low": pytest.approx(0.44732, abs=1e-5), "high": pytest.approx(0.56168, abs=1e-5),
        "deviation": pytest.approx(0.006364, abs=1e-6),
    }  # fmt: skip
    # Place 2 and 5 of sstoken, 0 and 3 of plain training.
    told = [(each["arm"], each["against"], each["difference"]) for each in found["comparisons"]["held_out/loss"]]
    assert ("sstoken", "all", pytest.approx(-0.19)) in told
    points = found["arms"]["sstoken"]["noise"]["points"]
    assert (points["last_step"], points["recall"], points["precision"]) == ([3], [0.85], None)
    assert points["auc"] == {"rel": None}
    assert found["arms"]["sstoken"]["seconds"] == pytest.approx(33.5)
    assert found["arms"]["all"]["noise"] is None
    table = capsys.readouterr().out
    (line,) = [line for line in table.splitlines() if line.startswith("| sstoken |")]
    assert "-0.190" in line
    assert "85.0%" in line


@pytest.fixture
def collected(made, tmp_path):
    """An experiment of which some runs have a result, and the folder of what was collected of them."""
    experiment = yaml.safe_load((made / "experiments" / "new-noise20.yaml").read_text())
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**experiment, "out": str(tmp_path / "runs")}))
    for place, run in enumerate(runs_of(read(file))[:-1]):
        measures = {name: Measure(place / 8, "lower", name, 5632) for name in ("held_out/loss", "untouched/loss")}
        kept = {} if run.arm.sstoken is None else {"selected_ratio": place / 64}
        write_result(
            Result(
                run.arm.name, run.seed, run.fingerprint, run.settings, measures, kept, 3, 20.0, 30.0, {"torch": "2"}
            ),
            run.folder,
        )
    collect.main([str(file), "--out", str(tmp_path / "before")])
    return file, tmp_path / "before"


def test_runs_of_another_machine_are_not_had_again(collected, tmp_path, capsys):
    file, results = collected
    first, *_, last = runs_of(read(file))
    kept_here = (first.folder / "result.json").read_text()
    for run in runs_of(read(file))[1:-1]:
        shutil.rmtree(run.folder)
    restore.main([str(file), "--results", str(results)])
    assert f"{len(runs_of(read(file))) - 2} runs restored" in capsys.readouterr().out
    assert (first.folder / "result.json").read_text() == kept_here
    assert last.result() is None
    collect.main([str(file), "--out", str(tmp_path / "after")])
    assert json.loads((tmp_path / "after" / "small.json").read_text()) == json.loads(
        (results / "small.json").read_text()
    )


def test_results_that_are_not_here_are_not_written_over(collected, capsys):
    file, results = collected
    before = (results / "small.json").read_text()
    first, *_ = runs_of(read(file))
    shutil.rmtree(first.folder)
    collect.main([str(file), "--out", str(results)])
    told = capsys.readouterr()
    assert "holds runs that have no result here (all, seed 101), and stays as it is" in told.err
    assert "### small:" in told.out
    assert (results / "small.json").read_text() == before
    collect.main([str(file), "--out", str(results), "--replace"])
    assert json.loads((results / "small.json").read_text())["runs"] == json.loads(before)["runs"] - 1

    others = json.loads(before)
    others["settings"]["base"]["learning_rate"] = 7e-5
    write_json(others, results / "small.json")
    collect.main([str(file), "--out", str(results)])
    told = capsys.readouterr().err
    assert "is of other settings (base.learning_rate was 7e-05 and is 0.0005), and stays as it is" in told
    assert json.loads((results / "small.json").read_text()) == others

    other = {**json.loads(before), "base": {"weights_sha256": "of another"}, "measures": {}}
    write_json(other, results / "small.json")
    collect.main([str(file), "--out", str(results)])
    assert "is of another base model, and stays as it is" in capsys.readouterr().err
    assert json.loads((results / "small.json").read_text()) == other


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base": {"learning_rate": 7e-5}}, r"base.learning_rate was .* and is 7e-05"),
        ({"arms": {"random": {"selector": "rel"}}}, r"arms.random.sstoken.selector was random and is rel"),
    ],
)
def test_runs_of_other_settings_are_not_restored(collected, tmp_path, change, named):
    file, results = collected
    experiment = yaml.safe_load(file.read_text())
    for key, changes in change.items():
        experiment[key].update(changes)
    file.write_text(yaml.safe_dump({**experiment, "out": str(tmp_path / "others")}))
    with pytest.raises(SystemExit, match=rf"other settings than its collected results \({named}"):
        restore.main([str(file), "--results", str(results)])
    assert not (tmp_path / "others").exists()


def test_settings_are_the_same_to_the_digits_that_results_have(collected):
    file, results = collected
    experiment = yaml.safe_load(file.read_text())
    # Not 1.8 to the last digit.
    experiment["base"]["num_epochs"] = 0.6 * 3
    file.write_text(yaml.safe_dump(experiment))
    found = json.loads((results / "small.json").read_text())
    found["settings"]["base"]["num_epochs"] = 1.8
    assert other_settings(found["settings"], settings_of(read(file))) == ""
    found["settings"]["base"]["num_epochs"] = 2.5
    assert "base.num_epochs was 2.5 and is 1.8" in other_settings(found["settings"], settings_of(read(file)))


def test_what_is_not_collected_of_a_run_is_not_restored(collected):
    file, results = collected
    found = json.loads((results / "small.json").read_text())
    found["arms"]["random"]["noise"] = {"whole": {"recall": 0.5}}
    write_json(found, results / "small.json")
    with pytest.raises(SystemExit, match="noise in its runs"):
        restore.main([str(file), "--results", str(results)])


def test_the_course_of_dropping_noise_is_shown_as_recall_and_precision(collected, capsys):
    _, results = collected
    found = json.loads((results / "small.json").read_text())
    steps = list(range(12, 241, 12))
    points = {"last_step": steps, "recall": [0.01 * place for place in range(20)], "precision": [None] * 4 + [0.5] * 16}
    found["arms"]["sstoken"]["noise"] = {"points": points}
    write_json(found, results / "small.json")
    course.main(["small", "--results", str(results)])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| arm | steps 1 to 12 | steps 37 to 48 | steps 49 to 60 | steps 109 to 120 | steps 229 to 240 |"
    assert rows == ["| sstoken | nothing dropped | nothing dropped | 4%, 50% | 9%, 50% | 19%, 50% |"]
    # Where there is no noise, all that is dropped is right.
    found["arms"]["sstoken"]["noise"]["points"] |= {"recall": None, "precision": [0.0] * 20}
    write_json(found, results / "small.json")
    course.main(["small", "--results", str(results)])
    assert capsys.readouterr().out.splitlines()[-1] == "| sstoken |" + " no noise, 0% |" * 5
    with pytest.raises(SystemExit, match="There is nothing of the noise of: random"):
        course.main(["small", "--results", str(results), "--arms", "sstoken", "random"])


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
@pytest.mark.parametrize("module", ["restore", "table"])
def test_a_file_that_was_not_collected_is_named(collected, module, content):
    file, results = collected
    wrong = results / "small.json"
    wrong.unlink() if content is None else wrong.write_text(content)
    with pytest.raises(SystemExit, match=r"small.json is no file of evidence.collect; name the folder .* --results"):
        {"restore": restore, "table": table}[module].main(
            [str(file) if module == "restore" else "small", "--results", str(results)]
        )


def test_restoring_is_a_command_that_names_what_it_cannot_read(collected):
    file, results = collected
    command = [sys.executable, "-m", "evidence.restore", str(file), "--results", str(results / "nowhere")]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].endswith("name the folder that holds them with --results.")


def test_an_arm_helps_where_it_beats_every_control_and_hurts_where_plain_training_beats_it(tmp_path, capsys):
    def experiment(values, verdicts):
        arms = {arm: {"mean": value} for arm, value in values.items()}
        pairs = [{"arm": arm, "against": other, "verdict": told} for (arm, other), told in verdicts.items()]
        measures = {"held_out/loss": {"arms": arms}}
        return {"settings": {}, "versions": {}, "arms": {}, "measures": measures,
                "comparisons": {"held_out/loss": pairs}}  # fmt: skip

    helps, hurts, untold = "helps", "hurts", "cannot be told from chance with 3 seeds"
    against = table.AGAINST
    first = experiment(
        {"all": 0.5, "good": 0.1, "lucky": 0.2, "bad": 0.9},
        {
            **{("good", other): helps for other in against},
            **{("lucky", other): untold if other == "random" else helps for other in against},
            **{("bad", other): hurts if other == "all" else untold for other in against},
        },
    )
    first["measures"]["answers/exact_match"] = {"arms": {"good": {"mean": 0.987}}, "untrained": 0.1}
    first["measures"]["held_out/loss"]["untrained"] = 2.5
    write_json(first, tmp_path / "first.json")
    write_json(experiment({"all": 0.25, "new": None}, {}), tmp_path / "second.json")
    table.main(["first", "second", "--results", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        "| arm | first | second |",
        "| --- | --- | --- |",
        "| untrained | 2.500, 10% right |  |",
        "| all | 0.500 | 0.250 |",
        "| good | 0.100 **helps**, 99% right |  |",
        "| lucky | 0.200 |  |",
        "| bad | 0.900 **hurts** |  |",
    ]


def test_a_file_of_results_is_json_with_few_lines():
    content = {"a": {"b": [1, 2.5, None], "c": {}}, "d": [{"e": "é\n"}, []], "f": True}
    text = collect.as_json(content)
    assert json.loads(text) == content
    assert text.splitlines()[:3] == ["{", ' "a": {', '  "b": [1, 2.5, null],']
    with pytest.raises(ValueError, match="JSON compliant"):
        collect.as_json({"a": [float("nan")]})


def test_means_over_seeds_leave_out_what_was_not_measured():
    assert collect.mean([{"a": [1, None]}, {"a": [3, None], "b": 2}]) == {"a": [2, None], "b": 2}
    assert collect.mean([]) is None
    assert collect.rounded({"a": [0.123456789, 12.0, None, "b", 3]}) == {"a": [0.12346, 12, None, "b", 3]}


SAMPLES = [
    {
        "messages": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"First of {number}. Then {number} more words of it.\nAnd an end."},
        ]
    }
    for number in range(60)
]


def responses(samples):
    return [sample["messages"][1]["content"] for sample in samples]


def test_a_third_of_what_is_corrupted_is_shuffled_another_answer_or_padded():
    made, places = corrupt.corrupted(SAMPLES, 0.5, [1])
    before, after = responses(SAMPLES), responses(made)
    assert len(places) == 30
    assert [place for place in range(60) if before[place] != after[place]] == places
    shuffled = [place for place in places if sorted(after[place].split()) == sorted(before[place].split())]
    swapped = [place for place in places if after[place] in before]
    padded = [place for place in places if sum(one in after[place] for one in corrupt.BOILERPLATE) == 2]
    assert len(shuffled) == len(swapped) == len(padded) == 10
    for place in padded:
        without = after[place]
        for sentence in corrupt.BOILERPLATE:
            without = without.replace(sentence, "")
        assert without.split() == before[place].split()
    assert [sample["messages"][0] for sample in made] == [sample["messages"][0] for sample in SAMPLES]


def test_what_is_corrupted_at_a_low_level_is_so_at_a_high_one_too():
    few, some = corrupt.corrupted(SAMPLES, 0.2, [1])
    most, more = corrupt.corrupted(SAMPLES, 0.4, [1])
    assert set(some) < set(more)
    assert [few[place] for place in some] == [most[place] for place in some]


def test_held_out_samples_are_clean_and_in_no_training_data(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "SOURCES", {name: replace(one, trained=40) for name, one in real.SOURCES.items()})
    for source in real.SOURCES.values():
        lines = [
            json.dumps(
                {"messages": [{**turn, "content": f"{source.file} {turn['content']}"} for turn in one["messages"]]}
            )
            for one in SAMPLES
        ]
        (tmp_path / source.file).write_text("\n".join(lines))
    real.main(["--data", str(tmp_path), "--out", str(tmp_path / "made"), "--seeds", "1"])
    for name in real.SOURCES:
        data = {
            file.stem.removeprefix(f"{name}-"): [json.loads(line) for line in file.read_text().splitlines()]
            for file in (tmp_path / "made" / "data").glob(f"{name}-*")
        }
        prompts = {key: {sample["messages"][0]["content"] for sample in found} for key, found in data.items()}
        assert len(prompts["held-out"]) == 9
        assert len(prompts["corrupt00"]) == 40
        assert len(prompts["reference"]) == 11
        assert prompts["corrupt00"] == prompts["corrupt20"] == prompts["corrupt40"]
        assert not prompts["held-out"] & prompts["corrupt00"]
        assert not prompts["reference"] & (prompts["held-out"] | prompts["corrupt00"])
        clean = {text for key in ("corrupt00", "held-out", "reference") for text in responses(data[key])}
        assert all("boilerplate" not in text and text.startswith(f"{real.SOURCES[name].file} First") for text in clean)
        assert len(data["corrupt40-without"]) == 24
        assert set(responses(data["corrupt40-without"])) < clean
    every = {file.stem: read(file) for file in (tmp_path / "made" / "experiments").iterdir()}
    confirms, late, paper_rate, warmup, core = (
        {name: every.pop(name) for name in list(every) if name.endswith(f"-{kind}")}
        for kind in ("confirmation", "late", "paper-rate", "warmup", "core")
    )
    assert len(confirms) == len(late) == len(paper_rate) == len(warmup) == len(core) == len(every) > 0
    for name, found in every.items():
        later = confirms[f"{name}-confirmation"]
        assert later.base == found.base
        assert set(later.seeds).isdisjoint(real.SEEDS)
        assert set(LATE_SEEDS).isdisjoint((*real.SEEDS, *later.seeds))
        begins_late(late[f"{name}-late"], "threshold-0.01")
        assert late[f"{name}-late"].base == found.base
        slower = paper_rate[f"{name}-paper-rate"]
        assert slower.base == {**found.base, "learning_rate": 1e-4}
        assert set(slower.seeds).isdisjoint((*real.SEEDS, *later.seeds, *LATE_SEEDS))
        confirms_default = warmup[f"{name}-warmup"]
        assert set(confirms_default.seeds).isdisjoint((*real.SEEDS, *later.seeds, *LATE_SEEDS, *slower.seeds))
        assert {arm.name: arm.sstoken for arm in confirms_default.arms} == {
            "sstoken": {"warmup_selector": "attention"}, "warmup-all": {"warmup_selector": "all"},
        }  # fmt: skip
        assert confirms_default.against == ("sstoken",)
        fewer = core[f"{name}-core"]
        assert (fewer.seeds, fewer.against) == (found.seeds, found.against)
        assert {arm.name: arm.sstoken for arm in fewer.arms} == {
            arm.name: arm.sstoken for arm in found.arms if arm.name in (*real.AGAINST, "warmup-all", "threshold-0.01")
        }
        assert len({one.out for one in (found, later, late[f"{name}-late"], slower, confirms_default, fewer)}) == 6
        assert {*real.AGAINST, "warmup-all"} < {arm.name for arm in slower.arms} < {arm.name for arm in found.arms}
        assert {"all", "random", "threshold-0.01"} < {arm.name for arm in later.arms} < {arm.name for arm in found.arms}
        assert {"all", "oracle", "threshold"} - {arm.name for arm in found.arms} <= {"oracle"}
        (block,) = [arm.sstoken for arm in found.arms if arm.name == "reference"]
        # What Axolotl trains for it, of which the name of the file says so.
        trained = yaml.safe_load((tmp_path / "made/references" / f"{Path(block['history']).name}.yaml").read_text())
        assert trained["output_dir"] == block["history"]
        assert trained["datasets"][0]["path"].endswith("-reference.jsonl")
        (shorter,) = [arm.changes["num_epochs"] for arm in found.arms if arm.name == "shorter"]
        assert shorter == pytest.approx(0.6 * found.base["num_epochs"])
        more = [arm.changes["datasets"] for arm in found.arms if arm.name == "clean-too"]
        is_once = name.startswith("smollm2") and name.endswith("corrupt40")
        assert more == ([[*found.base["datasets"], *trained["datasets"]]] if is_once else [])
        assert ("dft" in {arm.name for arm in found.arms}) == is_once


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"--data: .*instruct_free.jsonl cannot be read"):
        real.main(["--data", str(tmp_path)])


def test_noise_of_a_run_that_was_resumed_does_not_count_as_that_of_a_whole_one(tmp_path):
    run = SimpleNamespace(folder=tmp_path)
    for first, is_whole in ((1, True), (40, False)):
        point = {"first_step": first, "last_step": 60, "recall": 0.5}
        write_json({"points": [point], "whole": point}, tmp_path / "out" / noise.NAME)
        assert (collect.noise_of(run) is not None) is is_whole
