"""The loss cache in real Axolotl runs: what is computed once is not computed again, and changes nothing."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from axolotl.cli.utils import load_model_and_tokenizer
from conftest import skip_what_is_refused, write
from material import spread_over_gpus
from transformers import AutoModelForCausalLM

from sstoken_plugin.axolotl import cli
from sstoken_plugin.history import scoring
from sstoken_plugin.history.store import FILE, LossStore
from sstoken_plugin.selection.samples import sample_keys

FULL = {"adapter": None, "learning_rate": 0.005}
EPOCH = 6


@pytest.fixture
def cached(config, tmp_path):
    """Two epochs with a cache, REL from the start."""
    block = {"warmup_ratio": 0.0, "report": False, "history_cache": str(tmp_path / "cache")}
    return {**config, "max_steps": 2 * EPOCH, "sstoken": block}


def hits(run):
    return [line["sstoken/history_cache_hits"] for line in run.lines]


@pytest.mark.parametrize("changes", [{}, {"sample_packing": True}, FULL], ids=["lora", "packed", "full"])
def test_a_warm_run_computes_nothing_and_selects_the_same(cached, train, steps, forwards, changes):
    cached = {**cached, **changes}
    runs, taken = {}, {}
    for name in ("none", "cold", "warm"):
        block = dict(cached["sstoken"])
        if name == "none":
            block["history_cache"] = False
        runs[name] = train({**cached, "sstoken": block})
        taken[name] = [step for step, _ in steps]
        steps.clear()
        if name == "cold":
            assert sum(forwards[len(taken["none"]) :]) == 24, "each sample once, in the first epoch"
            forwards.clear()
    assert not forwards
    assert hits(runs["none"]) == [0] * len(runs["none"].lines)
    assert hits(runs["warm"]) == [1] * len(runs["warm"].lines)
    assert hits(runs["cold"])[-1] == 1
    for name in ("cold", "warm"):
        agree = total = 0
        for ours, theirs in zip(taken[name], taken["none"], strict=True):
            assert (ours.scores.history - theirs.scores.history).abs().max() <= 2e-3
            agree += (ours.kept & theirs.kept).sum().item()
            total += theirs.kept.sum().item()
        assert agree / total >= 0.999
    assert runs["warm"].losses == runs["cold"].losses


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_r": 8, "learning_rate": 0.01, "seed": 3},
        {"sample_packing": True, "pad_to_sequence_len": True},
        {"micro_batch_size": 3, "attn_implementation": "eager"},
        {"sstoken": {"ratio": 0.3, "gamma": 0.9, "attention_layer": 0}},
        FULL,
    ],
    ids=["training", "packing", "batches", "selection", "full after lora"],
)
def test_a_sweep_pays_once(cached, train, forwards, changes):
    cached = {**cached, "max_steps": EPOCH}
    train(cached)
    forwards.clear()
    block = {**cached["sstoken"], **changes.get("sstoken", {})}
    train({**cached, **changes, "max_steps": 3, "sstoken": block})
    assert not forwards


def test_full_fine_tuning_with_a_whole_cache_keeps_no_copy(cached, train):
    cached = {**cached, **FULL}
    first, second = train(cached), train(cached)
    assert first.trainer.sstoken.selection.history.history.memory == 4 * sum(
        p.numel() for p in first.model.parameters()
    )
    assert second.trainer.sstoken.selection.history.history is None
    for name, weight in first.weights.items():
        assert torch.equal(second.weights[name], weight), name


@pytest.fixture
def other_weight(tiny_llama, tmp_path):
    """The same model, but for the last bit of one weight."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_llama, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        bits = model.model.layers[1].mlp.up_proj.weight.view(-1).view(torch.int32)
        bits[7] ^= 1
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def other_tokenizer(tiny_llama, tmp_path):
    """The same tokenizer, but a token that is in every sample has changed places with another."""
    folder = tmp_path / "other-tokenizer"
    shutil.copytree(tiny_llama, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["user"], vocabulary["Ġthe"] = vocabulary["Ġthe"], vocabulary["user"]
    file.write_text(json.dumps(content))
    return str(folder)


CHANGES = {
    "a weight": {"base_model": "OTHER"},
    "the quantisation": {"adapter": "qlora", "load_in_4bit": True},
    "the tokenizer": {"tokenizer_config": "TOKENIZER"},
    "the template": {"chat_template": "llama3"},
    "the truncation": {"sequence_len": 40, "excess_length_strategy": "truncate"},
    "the response": {"train_on_inputs": True},
    "the first adapter": {"lora_model_dir": "ADAPTER"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_losses_is_a_miss(cached, train, tmp_path, other_weight, other_tokenizer, steps, change):
    cached = {**cached, "max_steps": EPOCH}
    paths = {"OTHER": other_weight, "ADAPTER": str(tmp_path / "first"), "TOKENIZER": other_tokenizer}
    changes = {key: paths.get(str(value), value) for key, value in CHANGES[change].items()}
    train(cached)
    shutil.copytree(cached["output_dir"], paths["ADAPTER"])
    steps.clear()
    # Prepared anew: Axolotl 0.17 takes prepared data of other settings for these.
    changed = train({**cached, **changes, "dataset_prepared_path": str(tmp_path / "anew")})
    if change != "the truncation":
        assert max(hits(changed)) == 0
        return
    # What fits into the window is not truncated, and stays what it was.
    assert 0 < sum(hits(changed)) < EPOCH / 2
    found = [step.scores.history for step, _ in steps]
    steps.clear()
    train({**cached, **changes, "sstoken": {**cached["sstoken"], "history_cache": False}})
    for ours, (step, _) in zip(found, steps, strict=True):
        assert (ours - step.scores.history).abs().max() <= 2e-3


def score(settings, folder, batch_tokens=256):
    cli.score(str(write(settings, folder)), {}, batch_tokens)


@pytest.mark.parametrize(
    "changes",
    [{}, {"sample_packing": True}, {"adapter": "qlora", "load_in_4bit": True}, FULL],
    ids=["lora", "packed", "qlora", "full"],
)
def test_training_after_scoring_runs_no_history_model(cached, train, tmp_path, forwards, capsys, changes):
    cached = {**cached, **changes}
    skip_what_is_refused(cached)
    score(cached, tmp_path)
    printed = capsys.readouterr().out
    assert "24 samples, 0 of them in" in printed
    assert "tokens a second" in printed
    assert sum(forwards) == 24
    forwards.clear()
    run = train({**cached, "max_steps": 4})
    assert not forwards
    assert hits(run) == [1] * 4
    score(cached, tmp_path)
    assert "24 samples, 24 of them in" in capsys.readouterr().out
    assert not forwards


def test_an_interrupted_scoring_goes_on_where_it_stopped(cached, tmp_path, forwards, capsys, monkeypatch):
    padded, batches = scoring.padded, []

    def interrupted(samples):
        batches.append(samples)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return padded(samples)

    monkeypatch.setattr(scoring, "padded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(cached, tmp_path)
    done = sum(forwards)
    assert 0 < done < 24
    capsys.readouterr()
    monkeypatch.setattr(scoring, "padded", padded)
    score(cached, tmp_path)
    assert f"24 samples, {done} of them in" in capsys.readouterr().out
    assert sum(forwards) == 24


def test_scoring_in_large_and_small_batches_gives_the_same_losses(cached, tmp_path):
    found = []
    for size in (1, 4096):
        block = {**cached["sstoken"], "history_cache": str(tmp_path / f"cache-{size}")}
        score({**cached, "sstoken": block}, tmp_path, size)
        database = sqlite3.connect(tmp_path / f"cache-{size}" / FILE)
        (mark,) = database.execute("SELECT DISTINCT history FROM blocks").fetchone()
        store = LossStore(tmp_path / f"cache-{size}", mark)
        found.append({key: store.get([key])[0] for key in store._places})
    assert found[0].keys() == found[1].keys()
    for key, losses in found[0].items():
        assert abs(losses - found[1][key]).max() <= 2e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sstoken": {"history_cache": False}}, "sstoken.history_cache: false keeps no losses"),
        ({**FULL, "sstoken": {"selector": "attention", "history_cache": "CACHE"}}, "ranks by no history"),
        ({"sstoken": {"selector": "random", "history_cache": "auto"}}, "ranks by no history"),
        ({"sstoken": {"history": "ema", "history_cache": "auto"}}, "sstoken.history: ema follows the training"),
    ],
    ids=["no folder", "no history", "no history, no folder", "a history that changes"],
)
def test_scoring_without_sense_is_refused(cached, tmp_path, changes, words):
    if changes["sstoken"]["history_cache"] == "CACHE":
        changes["sstoken"]["history_cache"] = str(tmp_path / "cache")
    with pytest.raises(ValueError, match=words):
        score({**cached, **changes}, tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused_before_training(cached, train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"sstoken\.history_cache: .* cannot be a folder"):
        train({**cached, "sstoken": {"history_cache": str(tmp_path / "file")}})


@pytest.fixture
def texts(cached, tmp_path):
    """Packed rows of texts without a prompt: every token is labelled."""
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"Nothing but text, number {n}."}) for n in range(40)))
    data = [{"path": str(file), "type": "completion"}]
    return {**cached, "datasets": data, "sample_packing": True, "sequence_len": 64, "max_steps": 3}


def test_a_first_token_of_a_packed_sample_is_no_loss_of_the_sample(texts, train, steps, forwards):
    """Where everything is labelled and kept, training learns from it too, after another sample's last token."""
    run = train({**texts, "sstoken": {**texts["sstoken"], "selector": "all"}})
    # Nothing ranks by it: one of the micro-batches is a sample.
    assert len(forwards) == 1 < len(steps)
    assert [line["sstoken/history_cache_hits"] for line in run.lines if "sstoken/rel_mean" in line] == [0]


def test_a_whole_cache_does_not_do_where_first_tokens_count(texts, train):
    train({**texts, **FULL, "max_steps": 6})
    block = {**texts["sstoken"], "warmup_ratio": 0.5, "warmup_selector": "all"}
    run = train({**texts, **FULL, "sstoken": block})
    # The second of the three steps lies in the warm-up, and is a sample.
    assert [line.get("sstoken/history_cache_hits") for line in run.lines] == [None, 0, 1]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_warmup_leaves_nothing_to_compute_twice(config, train, steps, forwards, packed):
    """Its samples are computed in the next epoch, without those that stand beside them there."""
    block = {"warmup_ratio": 0.25, "report": False}
    train({**config, "sample_packing": packed, "max_steps": 2 * EPOCH, "sstoken": block})
    ranked = [step for step, _ in steps if step.phase.reads_history]
    hits = {step.cached_samples == len(step.layout.lengths) for step in ranked}
    assert hits == {True, False}
    assert len(forwards) < len(steps)
    # Each sample once, as one that is in a data set twice has one key.
    assert sum(forwards) == len({key for _, batch in steps for key in sample_keys(batch, 16)[0]})
    steps.clear()
    block["history_cache"] = False
    train({**config, "sample_packing": packed, "max_steps": 2 * EPOCH, "sstoken": block})
    plain = [step for step, _ in steps if step.phase.reads_history]
    for ours, theirs in zip(ranked, plain, strict=True):
        assert (ours.scores.history - theirs.scores.history).abs().max() <= 2e-3


def own(config):
    return Path(config["output_dir"]) / "sstoken" / "history"


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ({"num_epochs": 2}, True),
        ({"num_epochs": 1}, False),
        ({"max_steps": 2 * EPOCH}, True),
        ({"max_steps": EPOCH}, False),
        ({"num_epochs": 2, "sstoken": {"history_cache": False}}, False),
        ({"num_epochs": 2, "sstoken": {"history_cache": None}}, False),
        ({"num_epochs": 2, "sstoken": {"history": "ema"}}, False),
        ({"num_epochs": 2, "sstoken": {"selector": "random"}}, False),
        ({"num_epochs": 2, "sstoken": {"selector": "lowest_base_loss"}}, True),
    ],
)
def test_a_run_of_several_epochs_keeps_losses_by_itself(config, train, forwards, caplog, changes, is_kept):
    if "num_epochs" in changes:
        config = {key: value for key, value in config.items() if key != "max_steps"}
    block = {"warmup_ratio": 0.0, "report": False, **changes.get("sstoken", {})}
    run = train({**config, **changes, "sstoken": block})
    assert (own(config) / FILE).exists() == is_kept
    line = next(text for text in caplog.messages if text.startswith("ssToken is active"))
    assert (str(own(config)) in line) == is_kept
    if is_kept:
        assert sum(forwards) == 24
        assert hits(run)[-1] == 1


def test_a_run_goes_on_where_its_own_folder_cannot_be_used(config, train, caplog):
    own(config).parent.mkdir(parents=True)
    own(config).write_text("somebody's")
    settings = {**config, "max_steps": 2 * EPOCH, "sstoken": {"report": False}}
    run = train(settings)
    assert len(run.lines) == 2 * EPOCH
    assert own(config).read_text() == "somebody's"
    assert any("losses are not kept from epoch to epoch" in text for text in caplog.messages)


def test_scoring_tells_why_the_folder_of_a_run_cannot_be_used(config, tmp_path):
    own(config).parent.parent.mkdir(parents=True, exist_ok=True)
    own(config).parent.write_text("somebody's")
    with pytest.raises(ValueError, match=r"sstoken\.history_cache: .*sstoken/history"):
        score(config, tmp_path)


def test_a_model_on_several_gpus_is_not_scored(config, tmp_path, monkeypatch):
    def spread(**arguments):
        model, *others = load_model_and_tokenizer(**arguments)
        return spread_over_gpus(model), *others

    monkeypatch.setattr("axolotl.cli.utils.load_model_and_tokenizer", spread)
    with pytest.raises(ValueError, match="device_map: the model is spread over cuda:0 and cuda:1"):
        score(config, tmp_path)
    assert not own(config).exists()


def test_the_page_leaves_the_losses_to_the_training(config, train, steps, forwards):
    """What it scores, how much of it the clock decides, in batches of its own."""
    found = []
    for report in (True, False):
        run = train({**config, "max_steps": 2 * EPOCH, "sstoken": {"warmup_ratio": 0.5, "report": report}})
        found.append(([step.cached_samples for step, _ in steps], run.losses))
        steps.clear()
        shutil.rmtree(own(config))
    assert found[0] == found[1]


def test_a_checkpoint_holds_a_small_history_though_the_cache_is_full(cached, train):
    settings = {**cached, "peft_init_lora_weights": "pissa", "save_strategy": "steps", "save_steps": EPOCH}
    train({**settings, "max_steps": EPOCH})
    folder = Path(cached["output_dir"])
    resumed = train({**settings, "resume_from_checkpoint": str(folder / f"checkpoint-{EPOCH}")})
    assert hits(resumed)[-1] == 1
    for steps in (EPOCH, 2 * EPOCH):
        assert (folder / f"checkpoint-{steps}" / "sstoken" / "history.safetensors").exists()


def test_scoring_without_a_folder_serves_the_run_itself(config, train, tmp_path, forwards):
    settings = {**config, "sstoken": {"warmup_ratio": 0.0, "report": False}}
    score(settings, tmp_path)
    assert sum(forwards) == 24
    forwards.clear()
    run = train(settings)
    assert not forwards
    assert hits(run) == [1] * len(run.lines)
