"""Samples scored at moments of a run: what is taken, what it may cost, and that the run does not notice."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.report import trajectory
from sstoken_plugin.report.trajectory import MOST_MOMENTS, spread_over
from sstoken_plugin.report.verdict import verdict
from sstoken_plugin.selection.config import SSTokenConfig


@pytest.fixture
def drawn(monkeypatch):
    """What each report page is drawn from."""
    from sstoken_plugin.report import assembly as page

    reports = []
    render = page.render
    monkeypatch.setattr(page, "render", lambda report: reports.append(report) or render(report))
    return reports


@pytest.fixture(autouse=True)
def time_enough(monkeypatch):
    """What a run of seconds may spend on scoring is not to depend on what else the machine does."""
    monkeypatch.setattr(trajectory, "LEAST_SECONDS", 600.0)


BLOCK = {"warmup_ratio": 0.5}
SAMPLES = SSTokenConfig().report_samples


def test_the_same_samples_are_scored_along_a_run_by_the_rule_of_the_moment(config, train, drawn):
    train({**config, "max_steps": 12, "sstoken": BLOCK})
    (report,) = drawn
    assert [moment.label for moment in report.moments] == [f"step {s} of 12" for s in (2, 3, 5, 6, 8, 9, 11, 12)]
    assert [moment.rule for moment in report.moments] == ["all"] * 3 + ["sstoken"] * 5
    first, *_, last = (moment.records for moment in report.moments)
    assert len(first) == SAMPLES
    for one, other in zip(first, last, strict=True):
        assert one["sample"] == other["sample"]
        assert one["input_ids"] == other["input_ids"]
        assert one["history_nll"] == other["history_nll"]
        assert one["current_nll"] != other["current_nll"]
    assert [record["sample"] for record in first] == [2 * index for index in range(12)]


def test_a_run_that_is_all_warm_up_shows_what_it_trained_on(config, train, drawn):
    train({**config, "max_steps": 4, "sstoken": {"warmup_ratio": 1.0}})
    (report,) = drawn
    assert {moment.rule for moment in report.moments} == {table.rule for table in report.breakdowns} == {"all"}
    trained = verdict(report)[0]
    assert trained.answer == "100\u00a0% of the response tokens"
    assert trained.sentences[1] == "That is the warm-up (`warmup_ratio: 1`): `selector: sstoken` has not ranked."


@pytest.mark.parametrize(("history", "moments"), [("initial", 1), ("ema", 8)])
def test_the_history_scores_the_samples_again_only_where_it_changes(config, train, monkeypatch, history, moments):
    passes = []
    computed = HistoryLosses._computed
    monkeypatch.setattr(HistoryLosses, "_computed", lambda self, *args: passes.append(args) or computed(self, *args))
    train({**config, "max_steps": 12, "sstoken": {"warmup_ratio": 0.0, "history": history, "history_cache": False}})
    micro_batches, groups = 12 * config["gradient_accumulation_steps"], SAMPLES // trajectory.GROUP
    assert len(passes) == micro_batches + groups * moments


def test_a_run_trains_the_same_with_and_without_the_page(config, train):
    settings = {**config, "lora_dropout": 0.2, "max_steps": 6}
    runs = [train({**settings, "sstoken": {**BLOCK, "report": report}}) for report in (True, False)]
    assert runs[0].losses == runs[1].losses
    for name, weight in runs[0].weights.items():
        assert torch.equal(weight, runs[1].weights[name]), name


def test_what_scoring_may_cost_is_bounded(config, train, drawn, monkeypatch):
    """On a clock that only scoring moves, and by more than the run may spend, the least is scored."""
    began = 100.0
    now = [began]
    monkeypatch.setattr(trajectory.time, "perf_counter", lambda: now[0])
    score = trajectory.score_samples

    def slow(*args, **options):
        now[0] += trajectory.LEAST_SECONDS / 5
        return score(*args, **options)

    monkeypatch.setattr(trajectory, "score_samples", slow)
    train({**config, "max_steps": 12, "sstoken": BLOCK})
    (report,) = drawn
    assert [len(moment.records) for moment in report.moments] == [trajectory.GROUP] * len(report.moments)
    assert [moment.label for moment in report.moments][-1] == "step 12 of 12"
    assert 1 < len(report.moments) < 8, "some moments that are planned can be afforded, and not all"
    assert now[0] - began <= trajectory.LEAST_SECONDS


def test_the_log_says_where_the_page_is_and_what_scoring_took(config, train, caplog, tmp_path):
    train({**config, "max_steps": 4, "sstoken": BLOCK})
    page = tmp_path / "out" / "sstoken" / "report.html"
    told = [record.getMessage() for record in caplog.records]
    about = [line for line in told if "page" in line or str(page) in line]
    assert about[0] == f"ssToken: what is selected will be shown in {page}."
    scored = r"ssToken: scored 12 samples for the page at step {} of 4: \d+\.\d s\."
    for step, line in zip((2, 3, 4), about[1:-1], strict=True):
        assert re.fullmatch(scored.format(step), line)
    assert re.fullmatch(
        rf"ssToken: what was selected is shown in {page}; scoring samples for it took \d+\.\d s\.", about[-1]
    )


def test_a_run_scores_as_many_samples_as_are_asked_for(config, train, drawn):
    train({**config, "max_steps": 3, "sstoken": {**BLOCK, "report_samples": 5, "report_seconds": 600}})
    (report,) = drawn
    assert [record["sample"] for record in report.moments[0].records] == [0, 4, 9, 14, 19]


def test_a_run_spends_no_more_seconds_than_are_given(config, train, drawn, monkeypatch, caplog):
    """On a clock that only scoring moves. What is shown comes from all over the data set, however short the time is."""
    began, given = 100.0, 20.0
    now = [began]
    monkeypatch.setattr(trajectory.time, "perf_counter", lambda: now[0])
    score = trajectory.score_samples

    def slow(*args, **options):
        now[0] += 4.0
        return score(*args, **options)

    monkeypatch.setattr(trajectory, "score_samples", slow)
    train({**config, "max_steps": 12, "sstoken": {**BLOCK, "report_seconds": given}})
    (report,) = drawn
    assert now[0] - began == given
    assert len(report.moments) == 5
    assert [record["sample"] for record in report.moments[0].records] == [0, 6, 12, 18]
    assert "scored 4 samples (of 12: more would take longer than sstoken.report_seconds allows)" in caplog.text
    assert "sstoken.report_seconds left no time for 3 of the planned moments." in caplog.text


def test_of_long_samples_fewer_are_scored(config, train, drawn, monkeypatch, caplog):
    monkeypatch.setattr(trajectory, "MEAN_TOKENS", 30)
    train({**config, "max_steps": 2, "sstoken": BLOCK})
    (report,) = drawn
    records = report.moments[0].records
    assert 4 <= len(records) < SAMPLES
    assert f"scored {len(records)} samples (of 12: they are long)" in caplog.text


@pytest.mark.parametrize(("later", "moments"), [(1.5, MOST_MOMENTS - 2), (6.0, 2)], ids=["as ever", "slower later"])
def test_long_runs_spend_a_share_of_their_time(monkeypatch, later, moments):
    """Samples cost 1.5 seconds each at the first moment, and `later` afterwards; the share is more than the least."""
    monkeypatch.setattr(trajectory, "LEAST_SECONDS", 5.0)
    now = [0.0]
    monkeypatch.setattr(trajectory.time, "perf_counter", lambda: now[0])
    steps, each = 10_000, 2.0

    class Session:
        samples = tuple({"input_ids": [0] * 100} for _ in range(50))
        phase_now = None
        is_first_rank = True
        config = SSTokenConfig()

        @staticmethod
        def of_first_rank(value):
            return value

        any_rank = of_first_rank

    watched = trajectory.Trajectory(Session())
    scored, spent = [], []

    def score(samples, phase, known):
        spent.append((later if known else 1.5) * len(samples))
        now[0] += spent[-1]
        scored.extend(sample["sample"] for sample in samples)
        return [{"sample": sample["sample"]} for sample in samples]

    monkeypatch.setattr(watched, "_score", score)
    monkeypatch.setattr(Session, "phase_now", trajectory.Phase("sstoken", 0.5, 0.6))
    for step in range(1, steps):
        now[0] += each
        watched.after_step(step, steps)
    assert sum(spent) + watched._last <= trajectory.SHARE * steps * each
    assert len(watched.moments) >= moments
    assert len(set(scored)) == SAMPLES


def test_a_resumed_run_draws_the_whole_of_it(config, train, drawn, tmp_path):
    settings = {**config, "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "sstoken": BLOCK}
    train(settings)
    folder = Path(settings["output_dir"]) / "checkpoint-4"
    shutil.copytree(folder, tmp_path / "from")
    train({**settings, "output_dir": str(tmp_path / "again"), "resume_from_checkpoint": str(tmp_path / "from")})
    whole, resumed = drawn
    labels = [[moment.label for moment in report.moments] for report in drawn]
    assert labels[0][-1] == labels[1][-1] == "step 8 of 8"
    assert labels[1][:3] == labels[0][:3]
    for one, other in zip(whole.moments, resumed.moments, strict=False):
        if one.label == other.label:
            assert json.dumps(one.records) == json.dumps(other.records)
    assert whole.breakdowns == resumed.breakdowns


def test_a_page_that_will_have_no_folder_is_told_at_the_start_and_costs_no_training(config, train, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sstoken").write_text("")
    run = train({**config, "max_steps": 2, "sstoken": BLOCK})
    assert run.trainer.state.global_step == 2
    assert "output_dir: there will be no page, because its folder cannot be made" in caplog.text
    assert "what is selected will be shown" not in caplog.text


def test_tables_count_the_tokens_that_were_trained_on(config, train, drawn, steps):
    train({**config, "max_steps": 6, "sstoken": BLOCK})
    (report,) = drawn
    seen = sum(len(step.kept) for step, _ in steps if step.phase.rule == "sstoken")
    kept = sum(int(step.kept.sum()) for step, _ in steps if step.phase.rule == "sstoken")
    titles = [table.title for table in report.breakdowns]
    assert titles[:3] == ["By kind of token", "By position in the response", "By turn"]
    for table in report.breakdowns[:4]:
        assert (sum(row[1] for row in table.rows), sum(row[2] for row in table.rows)) == (seen, kept)


def test_the_page_of_a_run_has_its_curves_its_warnings_and_its_settings(config, train, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"number {i} comes before {i + 1}"}) for i in range(16)))
    data = [{"path": str(texts), "type": "completion"}]
    run = train({**config, "datasets": data, "sstoken": {"warmup_ratio": 0.0, "gamma": 0.625}})
    page = (tmp_path / "out" / "sstoken" / "report.html").read_text()
    (warning,) = run.trainer.sstoken.warnings
    losses = [line["sstoken/loss_selected"] for line in run.lines]
    for shown in (warning.removeprefix("ssToken: "), '["gamma","0.625"]', *(f"{loss:.6g}" for loss in losses)):
        assert shown in page


def test_a_failure_costs_the_page_and_not_the_run(config, train, monkeypatch, tmp_path, caplog):
    def fail(*args, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr(trajectory, "score_samples", fail)
    run = train({**config, "sstoken": BLOCK})
    assert run.trainer.state.global_step == 4
    assert "samples were not scored: RuntimeError: no room" in caplog.text
    assert (tmp_path / "out" / "sstoken" / "report.html").exists()


@pytest.mark.parametrize("most", [1, 4, 7, 12, 100])
@pytest.mark.parametrize("total", [1, 3, 24, 1000])
def test_however_few_samples_there_is_time_for_they_come_from_all_over_the_data(total, most):
    chosen = spread_over(total, most)
    count = min(total, most)
    assert sorted(chosen) == [index * total // count for index in range(count)]
    for few in range(1, count + 1):
        # No stretch without one is longer than twice the share of each, but for the rounding to one of `count` places.
        places = [*sorted(chosen[:few]), total]
        longest = max(after - place for place, after in pairwise(places))
        assert longest <= 2 * total / few + total / count + 1


def test_nothing_has_no_samples():
    assert spread_over(0, 5) == []


def test_the_page_says_what_was_run_and_where_its_evaluation_loss_went(config, train, drawn):
    train({**config, "val_set_size": 0.25, "eval_steps": 2, "sstoken": {}})
    (report,) = drawn
    data = config["datasets"][0]["path"]
    date = report.facts["date"]
    assert report.facts == {
        "model": config["base_model"], "data": f"{data} (18 samples)", "adapter": "LORA, r 4, alpha 8",
        "trainer": "Axolotl", "steps": "4 steps", "date": date,
    }  # fmt: skip
    assert datetime.now().astimezone() - datetime.fromisoformat(date) < timedelta(minutes=10)
    paid, then = (one for one in verdict(report) if one.question in ("Did it pay?", "Next"))
    first, *_, last = (line for line in report.log if "eval_loss" in line)
    words = f"{first['eval_loss']:.4g} to {last['eval_loss']:.4g} (steps {first['step']} to 4"
    assert words in paid.sentences[0]
    assert "axolotl sstoken-compare" in then.sentences[0]
