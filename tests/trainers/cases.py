"""What must hold in every trainer: one table of cases, run through an adapter of each framework.

An adapter is a module `trainers.run_FRAMEWORK` with

    KINDS: tuple[str, ...]                 # kinds of data, such as ("padded", "packed"); the first is the plainest
    def train(plan: Plan) -> Trained       # makes the trainer as users do, trains, returns `Trained.by(trainer)`
    if __name__ == "__main__":
        main(train)

`Plan` and `Trained` are those of runs.py. The adapter seeds torch (`set_seed(0)`) before it makes the adapter's
weights, so that two runs begin alike; turns the chats of `plan.chats` into the data of `plan.kind`; lets errors of the
selection through as they are; and sets no logging up, since cases look at what users would see. Its tests are

    class TestFramework(Cases):
        adapter = run_framework

in test_FRAMEWORK.py, beside what only that framework has. `pytest -p material --noconftest` runs them where Axolotl is
not installed: fixtures `tiny_llama`, `chats` and `tmp_path` are all that is asked for.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from material import ROOT, run_command
from reference import assert_kept_by_the_rule, scored_samples, signals
from torch.testing import assert_close

from sstoken_plugin.training.trainer import TokenSelectionTrainer
from trainers.runs import Micro, Plan, recorded, write_plans

# In the first step the model is its own history, and REL is nothing but rounding.
SELECTS = {"ratio": 0.6, "warmup_ratio": 0.25, "warmup_selector": "attention"}


class Cases:
    """The table; a framework's own class says which adapter runs it."""

    adapter: ClassVar[ModuleType]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a case that asks for a `kind` once for each kind of data."""
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", self.adapter.KINDS)

    @pytest.fixture
    def plan(self, tiny_llama: Path, chats: Path, tmp_path: Path) -> Plan:
        """A plain run of a few steps on the plainest kind of data."""
        return Plan(str(tiny_llama), str(chats), str(tmp_path / "out"), self.adapter.KINDS[0])

    @pytest.fixture
    def train(self, plan: Plan, tmp_path: Path) -> Callable[..., Any]:
        """Train the plan with changes: `train(sstoken={...}, steps=2)`; each run has a folder of its own."""
        count = 0

        def run(**changes: Any) -> Any:
            nonlocal count
            count += 1
            changes.setdefault("folder", str(tmp_path / f"out-{count}"))
            return self.adapter.train(dataclasses.replace(plan, **changes))

        return run

    @pytest.fixture
    def micros(self) -> Any:
        """Every micro-batch of training in this test."""
        with recorded() as found:
            yield found

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_ratio_one_trains_as_without_selection(self, train, kind, accumulation):
        selected = train(kind=kind, accumulation=accumulation, sstoken={"ratio": 1.0})
        plain = train(kind=kind, accumulation=accumulation)
        assert selected.losses == pytest.approx(plain.losses, rel=2e-5)
        assert len(plain.losses) == 4
        assert min(plain.losses[1:]) < plain.losses[0]
        for name, weight in plain.weights.items():
            assert_close(selected.weights[name], weight, atol=2e-5, rtol=1e-4)

    def test_every_step_selects_by_the_method(self, train, micros, plan, kind):
        run = train(kind=kind, sstoken=SELECTS)
        assert_selects_by_the_method(micros, plan.model, run.trainer)

    def test_the_loss_of_accumulated_micro_batches_is_the_mean_of_all_kept_tokens(self, train, micros, kind):
        run = train(kind=kind, accumulation=2, sstoken=SELECTS)
        assert len(micros) == 8
        for first, loss in zip(range(0, 8, 2), run.losses, strict=True):
            steps = [micro.step for micro in micros[first : first + 2]]
            kept = torch.cat([step.scores.current[step.kept] for step in steps])
            assert loss == pytest.approx(kept.mean().item(), rel=2e-5)

    def test_evaluation_is_untouched(self, train, kind):
        selected = train(kind=kind, evaluates=True, learning_rate=0.0, steps=2, sstoken={"ratio": 0.2})
        plain = train(kind=kind, evaluates=True, learning_rate=0.0, steps=2)
        assert selected.evaluations == plain.evaluations
        assert len(plain.evaluations) == 2
        assert selected.losses != plain.losses

    def test_a_resumed_run_goes_on_bit_for_bit(self, train, kind):
        block = {**SELECTS, "history": "ema"}
        whole = train(kind=kind, saves=2, sstoken=block)
        checkpoint = Path(whole.trainer.args.output_dir) / "checkpoint-2"
        resumed = train(kind=kind, saves=2, sstoken=block, resumes_from=str(checkpoint))
        assert selection_metrics(resumed) == selection_metrics(whole)
        assert resumed.losses == whole.losses
        for name, weight in whole.weights.items():
            assert torch.equal(resumed.weights[name], weight), name

    def test_a_misspelt_key_is_refused_with_the_nearest_one(self, train):
        with pytest.raises(ValueError, match=r"sstoken\.ration is not a key; the nearest one is sstoken\.ratio"):
            train(sstoken={"ration": 0.6})

    def test_a_run_in_which_no_step_is_scored_stops(self, train, monkeypatch):
        def plain_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            return super(TokenSelectionTrainer, self).compute_loss(*args, **kwargs)

        monkeypatch.setattr(TokenSelectionTrainer, "compute_loss", plain_loss)
        with pytest.raises(RuntimeError, match="without sstoken"):
            train(sstoken=SELECTS)

    def test_the_start_up_line_and_the_page_are_told_of(self, plan, tmp_path):
        """With the framework's own logging, in a process of its own."""
        told = self.run_alone(tmp_path, dataclasses.replace(plan, sstoken=SELECTS))
        page = Path(plan.folder) / "sstoken" / "report.html"
        assert told.count("ssToken is active: it trains on 60% of each sample's response tokens") == 1
        assert f"what was selected is shown in {page}" in told
        assert page.exists()

    def test_two_ranks_train_as_one_that_accumulates(self, plan, tmp_path):
        seen = {}
        for world in (1, 2):
            plans = [
                dataclasses.replace(
                    plan, accumulation=2 // world, folder=str(tmp_path / f"{world}-{name}"), sstoken=block
                )
                for name, block in RANKS.items()
            ]
            self.run_alone(tmp_path, *plans, world=world)
            for name, one in zip(RANKS, plans, strict=True):
                seen[world, name] = [
                    torch.load(Path(one.folder) / f"rank-{rank}.pt", weights_only=False) for rank in range(world)
                ]
        for name in RANKS:
            (alone,), together = seen[1, name], seen[2, name]
            assert together[0]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
            for weight, value in alone["weights"].items():
                assert_close(together[1]["weights"][weight], value, atol=1e-4, rtol=1e-3)
        for step in range(4):
            (alone,), together = seen[1, "selected"], seen[2, "selected"]
            both = together[0]["kept"][step] | together[1]["kept"][step]
            assert both == alone["kept"][2 * step] | alone["kept"][2 * step + 1]
            assert len(both) >= 4
        assert seen[2, "everything"][0]["losses"] == pytest.approx(seen[2, "plain"][0]["losses"], rel=2e-5)

    def run_alone(self, folder: Path, *plans: Plan, world: int = 1) -> str:
        """Run plans in a process of their own, or in one a rank, and return what was printed."""
        file = write_plans(folder / "plans.json", *plans)
        paths = [str(ROOT), str(ROOT / "startup"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        start = (
            ("torchrun", "--standalone", "--nproc_per_node", str(world)) if world > 1 else (Path(sys.executable).name,)
        )
        module: str = self.adapter.__name__
        return run_command(
            *start, "-m", module, str(file), PYTHONPATH=os.pathsep.join(filter(None, paths)), ACCELERATE_USE_CPU="true"
        ).stdout  # fmt: skip


# Blocks that are run on one and on two ranks.
RANKS: dict[str, dict[str, Any] | None] = {"selected": SELECTS, "everything": {"ratio": 1.0}, "plain": None}


def selection_metrics(run: Any) -> list[dict[str, float]]:
    """What the selection logged, line by line."""
    return [{name: value for name, value in line.items() if name.startswith("sstoken/")} for line in run.lines]


def assert_selects_by_the_method(micros: list[Micro], folder: str, trainer: Any) -> None:
    """Check every micro-batch against the method written once more, on models that this trainer never had.

    Args:
        micros: what was trained on.
        folder: the base model.
        trainer: the trainer, for the settings of its adapter and of its selection.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    history = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    tuned = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    adapter = trainer.accelerator.unwrap_model(trainer.model).peft_config["default"]
    tuned = get_peft_model(tuned, adapter)
    gain = 0.0
    for number, ids, response, prompt, rows in scored_samples([(micro.step, micro.batch) for micro in micros]):
        step = micros[number].step
        missing = tuned.load_state_dict(micros[number].weights, strict=False)
        assert not missing.unexpected_keys
        where = torch.tensor(response)
        current, attention = signals(tuned, ids)
        before, _ = signals(history, ids)
        assert_close(step.scores.current[rows], current[where - 1], atol=1e-4, rtol=0)
        # In the warm-up it is measured on samples alone.
        assert step.scores.history is not None or step.phase.rule == "attention"
        if step.scores.history is not None:
            assert_close(step.scores.history[rows], before[where - 1], atol=1e-4, rtol=0)
        assert_close(step.scores.attention[rows], attention[where][:, prompt].sum(1), atol=1e-4, rtol=0)
        if step.phase.rule == "sstoken":
            assert_kept_by_the_rule(step, rows, step.settings.config)
        gain = max(gain, (before - current).abs().max().item())
    assert {micro.step.phase.rule for micro in micros} == {"attention", "sstoken"}
    assert gain > 0.01, "the weights hardly changed, the history would say nothing"
