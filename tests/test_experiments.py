"""Experiments through the real Axolotl: the same start for all arms, nothing done twice, killed or not."""

import gc
import json
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from axolotl.common.datasets import load_datasets
from axolotl.train import train as axolotl_train
from click.testing import CliRunner
from conftest import load, skip_what_is_refused
from filelock import FileLock
from material import write_with_other_tokens
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoConfig, PreTrainedModel, Trainer, set_seed

from sstoken_plugin.axolotl import experiment as experiment_module
from sstoken_plugin.axolotl.experiment import train, trained_model, write, yaml_of_arm, yaml_of_trained
from sstoken_plugin.base.numbers import number
from sstoken_plugin.experiments import prepare, processes, worker
from sstoken_plugin.experiments.compare import compare_command
from sstoken_plugin.experiments.comparison import tables_of
from sstoken_plugin.experiments.config import AnswersEvaluation, LossEvaluation, parse
from sstoken_plugin.experiments.evaluate import evaluate
from sstoken_plugin.experiments.have import have
from sstoken_plugin.experiments.losses import measure_losses
from sstoken_plugin.experiments.processes import prepared, run_job
from sstoken_plugin.experiments.results import read_json, write_json
from sstoken_plugin.experiments.runs import Runs, runs_of, train_yaml, untrained_of
from sstoken_plugin.experiments.watch import Watch
from sstoken_plugin.experiments.worker import remove_cut_checkpoints

TRAINED, RESUMED = "Training completed!", "auto-resume functionality"


@pytest.fixture(scope="module")
def base(small_run):
    return {**small_run, "val_set_size": 0.25, "max_steps": 4}


@pytest.fixture(scope="module")
def compared(base, tmp_path_factory):
    """A comparison of two seeds, through the command: plain training, `selector: all`, and the method."""
    folder = tmp_path_factory.mktemp("compared")
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(base))
    arguments = [str(file), "--arms", "sstoken,same:selector=all,all", "--seeds", "2", "--out", str(folder / "out")]
    told = CliRunner().invoke(compare_command, arguments, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return folder / "out", told.output, arguments


def runs_trained(out):
    """How often each run was trained to its end."""
    logs = out.glob("runs/*/*/log.txt")
    return {str(log.parent.relative_to(out / "runs")): log.read_text().count(TRAINED) for log in logs}


def test_a_comparison_says_how_long_it_takes_and_what_came_out(compared):
    out, told, _ = compared
    assert "6 runs and the untrained model to go, about " in told
    assert "of sstoken, measured here" in told
    assert "Samples to train on: 18. Held out: 6 for held_out." in told
    found = json.loads((out / "compare.json").read_text())
    assert list(found["arms"]) == ["sstoken", "same", "all"]
    for name, arm in found["arms"].items():
        assert arm["seeds"] == [1, 2]
        assert len(arm["eval_loss"]) == 2
        assert all(isinstance(value, float) for value in arm["eval_loss"])
        low, high = (0.5, 0.8) if name == "sstoken" else (1, 1)
        assert all(low <= kept <= high for kept in arm["kept"])
    pairs = {(each["arm"], each["against"]): each for each in found["comparisons"]}
    assert set(pairs) == {("sstoken", "all"), ("same", "all")}
    values, others = (found["arms"][name]["eval_loss"] for name in ("sstoken", "all"))
    each = pairs["sstoken", "all"]
    assert each["difference"] == pytest.approx(sum(a - b for a, b in zip(values, others, strict=True)) / 2)
    low, high = stats.ttest_rel(values, others).confidence_interval(1 - 0.05 / 2)
    assert (each["low"], each["high"]) == pytest.approx((low, high))
    assert each["verdict"] in ("helps", "hurts", "cannot be told from chance with 2 seeds")
    assert (each["verdict"] == "helps") == (each["high"] < 0)
    page = (out / "compare.html").read_text()
    assert f"{number(found['untrained']['eval_loss'])} before training" in page
    assert "6 of 6 runs, with 2 seeds." in page
    assert "sstoken" in page


def test_arms_have_the_same_start_the_same_order_and_the_same_held_out_tokens(compared):
    out, _, _ = compared
    found = json.loads((out / "compare.json").read_text())["arms"]
    # The plugin that keeps all tokens trains as plain training does, to rounding: same first weights, same batches.
    assert found["same"]["eval_loss"] == pytest.approx(found["all"]["eval_loss"], abs=2e-4)
    assert abs(found["all"]["eval_loss"][0] - found["all"]["eval_loss"][1]) > 1e-3
    results = [json.loads(file.read_text()) for file in out.glob("runs/*/*/result.json")]
    assert len({each["measures"]["held_out/loss"]["count"] for each in results}) == 1
    # Three of four steps rank by REL, and the look before the first run has kept the losses of their samples.
    assert [each["kept"].get("history_cache_hits") for each in results if each["arm"] == "sstoken"] == [0.75, 0.75]
    assert (out / "history" / "losses-2.sqlite").exists()


def test_the_untrained_model_is_measured_as_the_arms_are_and_once(base, tmp_path):
    def experiment(arms, **keys):
        return parse({"base": base, "out": str(tmp_path / "out"), "arms": arms, "seeds": 1, **keys})

    still = {"still": {"changes": {"learning_rate": 1e-12}}}
    runs = Runs.of(experiment(still))
    assert have(experiment(still), runs) == []
    results = [run.result() for run in runs.trainings]
    table = tables_of(experiment(still), results, runs.untrained.result())[0]
    # What has learnt nothing is the model before training, had along another way.
    assert table.untrained == pytest.approx(table.values["still"][0], rel=1e-6)
    assert untrained_of(experiment({**still, "more": None})).result() is not None
    assert untrained_of(experiment(still, evaluations={"few": {"kind": "loss", "samples": 1}})).result() is None


def test_where_no_process_can_be_forked_as_with_a_gpu_each_begins_from_nothing(base, tmp_path, monkeypatch):
    program = (
        "import sys; from sstoken_plugin.experiments import server; server.can_fork = lambda: False; "
        "sys.exit(server.main())"
    )
    monkeypatch.setattr(processes, "_SERVER", (sys.executable, "-c", program))
    experiment = parse({"base": base, "out": str(tmp_path / "out"), "arms": {"sstoken": {}}, "seeds": 1})
    runs = Runs.of(experiment)
    assert have(experiment, runs) == []
    assert runs_trained(tmp_path / "out")["sstoken/seed-1"] == 1
    (trained,) = runs.trainings
    assert trained.result().kept["selected_ratio"] == pytest.approx(0.68, abs=0.15)


def test_the_untrained_model_is_measured_by_the_first_of_several_machines_alone(base, tmp_path):
    experiment = parse({"base": base, "out": str(tmp_path / "out"), "arms": {"all": None}, "seeds": 2})
    runs = Runs.of(experiment)
    first, second = runs.trainings
    assert have(experiment, runs, "2/2") == []
    assert (first.result(), untrained_of(experiment).result()) == (None, None)
    assert second.result() is not None
    assert have(experiment, runs, "1/2") == []
    assert first.result() is not None
    assert untrained_of(experiment).result() is not None


def test_a_finished_comparison_is_not_had_again(compared):
    out, _, arguments = compared
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*/result.json")}
    told = CliRunner().invoke(compare_command, arguments, catch_exceptions=False)
    assert told.exit_code == 0
    assert "6 of 6 runs have been had before, and are not had again." in told.output
    assert {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*/result.json")} == before
    trained = runs_trained(out)
    assert trained.pop("untrained/seed-0") == 0
    assert set(trained.values()) == {1}
    # Their weights are gone, so that nothing may say of them that they are trained, should a result be lost.
    assert not [*out.glob("runs/*/*/out/*.safetensors"), *out.glob("runs/*/*/trained.json")]


def test_a_changed_configuration_is_told_and_not_mixed_in(compared, base, tmp_path):
    _, _, arguments = compared
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**base, "learning_rate": 0.01}))
    told = CliRunner().invoke(compare_command, [str(file), *arguments[1:]])
    assert told.exit_code == 1
    assert "train.learning_rate was 0.02 and is 0.01" in told.output
    assert "name another folder (`out:`, or --out of sstoken-compare)" in told.output


OF_SETTINGS = {"max_steps": 8, "lora_dropout": 0.1}


@pytest.fixture
def settings(base, tmp_path, chats):
    """An experiment that writes a checkpoint after each step, and has every evaluation that needs no network."""

    def make(out):
        datasets = [{"path": str(chats), "type": "chat_template", "field_messages": "messages"}]
        return parse(
            {
                "base": {**base, **OF_SETTINGS},
                "out": str(tmp_path / out),
                "arms": {"random": {"selector": "random"}, "all": None},
                # The base's own, so that plain Axolotl trains as the arm without selection.
                "seeds": [base["seed"]],
                "evaluations": {
                    "held_out": {"kind": "loss"},
                    "forgetting": {"kind": "forgetting", "datasets": datasets, "samples": 4},
                    "answers": {"kind": "answers", "samples": 3, "max_new_tokens": 4},
                },
                "checkpoint_minutes": 0,
                "keep_models": True,
            }
        )

    return make


def begin(experiment):
    """Have an experiment in a process of its own, as a second terminal would."""
    process = multiprocessing.get_context("fork").Process(target=have, args=(experiment, Runs.of(experiment)))
    process.start()
    return process


def test_a_killed_run_goes_on_where_it_was_and_two_processes_share_the_rest(settings, base, tmp_path):
    killed = settings("killed")
    process = begin(killed)
    first, second = runs_of(killed)
    deadline = time.monotonic() + 300
    while not list((first.folder / "out").glob("checkpoint-[3-6]/trainer_state.json")):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert first.result() is None
    # What it had started ended with it, so that the run is free.
    with FileLock(first.folder / "lock", timeout=10):
        pass

    both = [begin(killed), begin(killed)]
    for each in both:
        each.join(300)
        assert each.exitcode == 0
    assert runs_trained(killed.out) == {"untrained/seed-0": 0, "random/seed-42": 1, "all/seed-42": 1}
    assert [RESUMED in (run.folder / "log.txt").read_text() for run in (first, second)] == [True, False]

    for run in (first, second):
        assert run.result().steps == 8
        never_stopped = {**train_yaml(run, killed.out), "output_dir": str(tmp_path / run.arm.name)}
        train(write(never_stopped, tmp_path / f"{run.arm.name}.yaml"), run.seed)
        same_weights(run.folder / "out", tmp_path / run.arm.name)
    plain = load({**base, **OF_SETTINGS, "plugins": [], "output_dir": str(tmp_path / "plain")}, tmp_path)
    set_seed(plain.seed)
    axolotl_train(cfg=plain, dataset_meta=load_datasets(cfg=plain))
    same_weights(second.folder / "out", tmp_path / "plain")
    names = set(first.result().measures)
    assert {"held_out/loss", "forgetting/loss", "answers/exact_match", "answers/answer_tokens"} <= names
    # Its samples are those of the training, which the reader is told.
    (found,) = killed.out.glob("prepared-*.json")
    assert set(read_json(found)["shared"]) == {"random/forgetting", "all/forgetting"}


def same_weights(folder, other):
    weights, others = (load_file(each / "adapter_model.safetensors") for each in (folder, other))
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)


@pytest.mark.parametrize("packed", [{}, {"sample_packing": True, "micro_batch_size": 1}])
def test_every_arm_sees_the_same_batches_from_the_same_weights_with_the_same_dropout(
    base, tmp_path, monkeypatch, packed
):
    skip_what_is_refused(packed)
    base = {**base, **packed, "max_steps": 2, "lora_dropout": 0.1}
    seen, step = [], Trainer.training_step

    def watched(self, model, inputs, *arguments):
        weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        # Those of later steps follow from what an arm kept.
        seen[-1].append([inputs["input_ids"], torch.get_rng_state(), *([] if seen[-1] else weights)])
        return step(self, model, inputs, *arguments)

    monkeypatch.setattr(Trainer, "training_step", watched)
    for place, block in enumerate([None, {"report": False}]):
        found = {**yaml_of_arm(base, block, {}), "output_dir": str(tmp_path / str(place))}
        seen.append([])
        train(write(found, tmp_path / "arm.yaml"), 7)
    assert len(seen[0]) == 4
    for plain, own in zip(*seen, strict=True):
        assert all(a.equal(b) for a, b in zip(plain, own, strict=True))


@pytest.mark.parametrize("changes", [{}, {"adapter": None, "reinit_weights": True}], ids=["lora", "new weights"])
def test_the_loss_is_the_trainers_own_where_one_batch_holds_all(base, tmp_path, changes):
    kept = {"plugins": [], "eval_batch_size": 100, "eval_strategy": "epoch", "learning_rate": 1e-12}
    plain = {**base, **kept, **changes}
    cfg = load({**plain, "output_dir": str(tmp_path / "out"), "max_steps": 1}, tmp_path)
    data = load_datasets(cfg=cfg)
    _, _, trainer = axolotl_train(cfg=cfg, dataset_meta=data)
    trained = trained_model(write(yaml_of_trained({**plain, "output_dir": str(tmp_path)}, tmp_path / "out"),
                                  tmp_path / "trained.yaml"))  # fmt: skip
    measured = measure_losses(trained, data.eval_dataset)["loss"]
    assert measured.value == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_what_a_run_has_forked_ends_with_it():
    forks = (
        "import os, sys, time; from types import SimpleNamespace; from sstoken_plugin.experiments import server\n"
        "job = SimpleNamespace(work=lambda job: os.write(1, b'%d\\n' % os.fork()) and time.sleep(60))\n"
        "sys.modules |= {f'sstoken_plugin.experiments.{name}': job for name in ('prepare', 'worker')}\n"
        "server.work({'kind': 'prepare'})"
    )
    with subprocess.Popen([sys.executable, "-c", forks], stdout=subprocess.PIPE, text=True) as process:
        child = max(int(process.stdout.readline()) for _ in range(2))
        process.kill()
        # Until the last process that can write to it has ended.
        assert select.select([process.stdout], [], [], 10)[0], child
        assert process.stdout.read() == ""


@pytest.fixture
def here():
    """The look before the first training, in this process."""

    def look(experiment, *, measure=True):
        server = SimpleNamespace(start=lambda job: SimpleNamespace(wait=lambda: prepare.work(job)))
        return prepared(server, experiment, runs_of(experiment), measure=measure)

    return look


def test_a_look_at_how_long_a_run_takes_holds_one_model_at_a_time_and_leaves_folders_of_others(
    base, here, tmp_path, monkeypatch
):
    def models():
        return {id(each) for each in gc.get_objects() if isinstance(each, PreTrainedModel)}

    load_model, loaded = experiment_module.trained_model, []

    def watched(file):
        loaded.append(models() - before)
        return load_model(file)

    monkeypatch.setattr(experiment_module, "trained_model", watched)
    mine = tmp_path / "out/prepared/mine.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("the only copy")
    before = models()
    found = here(parse({"base": {**base, "max_steps": 40}, "out": str(tmp_path / "out"), "arms": {"sstoken": {}}}))
    assert found["estimate"]["steps_measured"] == 5
    assert loaded == [set()]
    assert mine.read_text() == "the only copy"


@pytest.mark.parametrize(
    ("file", "content", "change", "words"),
    [
        ("held_out", "", {}, "evaluations.e: {file} is empty"),
        ("held_out", '{"messages": [', {}, "evaluations.e: DatasetGenerationError: "),
        ("chats", '{"messages": [', {}, "base: DatasetGenerationError: "),
        ("held_out", None, {"base_model": "no/such"}, "base (base_model: no/such): OSError: "),
        ("held_out", None, {"lerning_rate": 1}, "changes.lerning_rate is no key of this Axolotl, which would train as "
         "if it were not there; the nearest one is learning_rate."),
    ],
)  # fmt: skip
def test_bad_data_are_told_with_their_key_and_whole_ones_stay(
    base, chats, here, tmp_path, file, content, change, words
):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("chats", "held_out")}
    for each in files.values():
        shutil.copy(chats, each)
    entries = {name: [{**base["datasets"][0], "path": str(each)}] for name, each in files.items()}
    evaluations = {"own": {"kind": "loss"}, "e": {"kind": "loss", "datasets": entries["held_out"]}}
    whole = {
        "base": {**base, "datasets": entries["chats"], "val_set_size": 0.25, "max_steps": 2},
        "out": str(tmp_path / "out"),
        "arms": {"all": None},
    }
    here(parse(whole), measure=False)
    before = sorted((tmp_path / "out" / "prepared").rglob("complete"))
    assert before
    if content is not None:
        files[file].write_text(content)
    with pytest.raises(ValueError, match="All that was printed is in") as error:
        here(parse({**whole, "changes": change, "evaluations": evaluations}))
    assert words.format(file=files[file]) in str(error.value)
    assert set(before) <= set((tmp_path / "out" / "prepared").rglob("complete"))


def test_a_history_of_other_tokens_is_told_before_any_arm_trains(base, tiny_llama, trained_adapter, here, tmp_path):
    settings = AutoConfig.from_pretrained(tiny_llama)
    settings.vocab_size = 1000
    settings.save_pretrained(tmp_path / "small")
    arms = {"all": None, "mine": {"selector": "reference", "history": str(tmp_path / "small")}}
    words = r"arms\.mine: sstoken\.history: .*small knows 1000 tokens and the tokenizer"
    with pytest.raises(ValueError, match=words):
        here(parse({"base": base, "out": str(tmp_path / "out"), "arms": arms}))
    assert not (tmp_path / "out" / "runs").exists()
    # As models with an image tower have it.
    write_json({"model_type": "llama", "text_config": {"vocab_size": 1000}}, tmp_path / "small" / "config.json")
    with pytest.raises(ValueError, match=words):
        here(parse({"base": base, "out": str(tmp_path / "out"), "arms": arms}))
    # An adapter has no tokens of its own.
    arms["mine"] = {"selector": "reference", "history": trained_adapter}
    assert here(parse({"base": base, "out": str(tmp_path / "out"), "arms": arms}), measure=False)


def test_an_arm_with_another_tokenizer_is_told_before_any_arm_trains(base, tiny_llama, here, tmp_path):
    """Held-out data have the numbers that the base's tokenizer gives them: another model would read another text."""
    write_with_other_tokens(tiny_llama, tmp_path / "other")
    # Tokens that come on top leave those of the base what they are.
    more = {"tokens": ["<|brand_new|>"], "lora_modules_to_save": ["embed_tokens", "lm_head"]}
    arms = {"all": None, "more": {"changes": more}}
    here(parse({"base": base, "out": str(tmp_path / "out"), "arms": arms}), measure=False)
    # The same tokens, of which other rules make others of a text.
    shutil.copytree(tiny_llama, tmp_path / "rules")
    file = tmp_path / "rules" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:1000]
    file.write_text(json.dumps(content))
    for other in ("other", "rules"):
        arms["mine"] = {"changes": {"base_model": str(tmp_path / other)}}
        with pytest.raises(ValueError, match=r"arms\.mine: its changes give it another tokenizer than the base has \("):
            here(parse({"base": base, "out": str(tmp_path / "out"), "arms": arms}), measure=False)


@pytest.mark.parametrize(("batch", "times"), [(1, 12.5), (4, 12.5), (8, 13), (25, 4), (None, 12.5)])
def test_an_evaluation_takes_as_much_longer_as_it_has_more_samples_or_batches(batch, times):
    asked = LossEvaluation() if batch is None else AnswersEvaluation(batch_size=batch)
    assert prepare.times_as_long(asked, 100, 8) == times


def test_evaluations_that_a_kill_left_are_not_had_again_and_what_others_left_is_none(
    settings, base, tmp_path, monkeypatch
):
    experiment = settings("killed")
    run = next(run for run in runs_of(experiment) if run.arm.name == "all")
    # An adapter of other settings that was never trained, which would be taken for one beside full weights.
    write_json({"fingerprint": "another", "settings": {}}, run.folder / "run.json")
    write_json({"peft_type": "LORA"}, run.folder / "out" / "adapter_config.json")
    (run.folder / "out" / "of-others").touch()
    had, took = [], 1000.0

    def killed(trained, name, *others):
        if name == "answers" and had.count("answers") == 0:
            had.append(name)
            raise KeyboardInterrupt
        had.append(name)
        return evaluate(trained, name, *others)

    monkeypatch.setattr(worker, "evaluate", killed)
    job = {**run_job(run, experiment), "started": time.time()}
    with pytest.raises(KeyboardInterrupt):
        worker.work(job)
    assert not (run.folder / "out" / "of-others").exists()
    left = read_json(run.folder / "measured.json")
    assert left["seconds"] > 0
    write_json({**left, "seconds": took}, run.folder / "measured.json")
    assert worker.work(job) == 0
    assert run.result().seconds > took
    assert had == ["held_out", "forgetting", "answers", "answers"]
    names = {name.partition("/")[0] for name in run.result().measures}
    assert names == {"held_out", "forgetting", "answers"}
    assert not (run.folder / "measured.json").exists()
    # Of other settings, damaged, or of weights that are gone, it counts for nothing.
    for content, lost in (
        ({**left, "fingerprint": "another"}, ()),
        ({**left, "measures": {"held_out/loss": {}}}, ()),
        (left, (run.folder / "out").glob("*.safetensors")),
    ):
        for file in (run.folder / "result.json", *lost):
            file.unlink()
        had[:] = ["answers"]
        write_json(content, run.folder / "measured.json")
        assert worker.work(job) == 0
        assert had == ["answers", "held_out", "forgetting", "answers"]


def test_arms_train_on_what_they_say_of_their_data(base, here, tmp_path):
    arms = {"short": {"changes": {"sequence_len": 60, "excess_length_strategy": "drop"}},
            "cut": {"changes": {"sequence_len": 60, "excess_length_strategy": "truncate"}}}  # fmt: skip
    found = here(parse({"base": base, "out": str(tmp_path / "out"), "arms": arms}))
    assert found["samples"]["short"] < found["samples"]["cut"]


def test_checkpoints_take_a_tenth_of_the_time_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch, saved = Watch(lambda *_: None, 5), []
    state = SimpleNamespace(global_step=0, max_steps=1000)
    for minute in range(200):
        now[0] += 60
        state.global_step += 1
        control = SimpleNamespace(should_save=False)
        watch.on_step_end(None, state, control)
        if control.should_save:
            saved.append(minute)
            now[0] += 4 * 60
            watch.on_save(None, state, control)
    # The first after five minutes; then one takes four, so that the next is due after forty.
    assert saved == [4, 44, 84, 124, 164]


def test_a_checkpoint_whose_writing_was_cut_is_not_resumed_from(tmp_path):
    whole, cut = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    for folder in (whole, cut):
        folder.mkdir()
    (whole / "trainer_state.json").write_text("{}")
    (cut / "trainer_state.json").write_text("{")
    remove_cut_checkpoints(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-1"]
