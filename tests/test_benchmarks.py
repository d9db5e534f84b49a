"""The parts of the benchmarks that measure nothing: pictures of their results, and rivals that do what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import plots  # noqa: E402
import profile_step  # noqa: E402
import rivals  # noqa: E402
from harness import LORA, Case, build, fill_cache, ratios, step  # noqa: E402

MACHINE = {"cpu": "a processor", "cores": "2", "python": "3", "torch": "2"}
# A file's rows, and a text that its picture must have; in an SVG each text stands in a comment.
RESULTS = {
    "step": ({"warm, 2 x 512": {}, "parts": None}, "warm, 2 x 512"),
    "growth": (
        {f"prompt {share}": {"variable": "prompt", "value": share} for share in (0.37, 0.83)},
        "0.37",
    ),
    "rivals": (
        {f"2 x 512, {side}": {"size": "2 x 512", "side": side} for side in ("plugin", "authors")},
        "2 x 512: ssToken, authors' way",
    ),
    "profile": ({"plain": {"output head and loss": 1.5, "optimizer": 0.5}}, "output head and loss"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_drawn(name, tmp_path):
    pytest.importorskip("matplotlib")
    rows, text = RESULTS[name]
    measured = ratios({"plain": [1.0, 2.0], "plugin": [0.5, 1.5]}, {"plain": 4, "plugin": 3})
    made_up = {row: {"probe": {}} if more is None else {**measured, **more} for row, more in rows.items()}
    (tmp_path / f"{name}.json").write_text(json.dumps({"machine": MACHINE, "rows": made_up}))
    picture = plots.draw(name, tmp_path, tmp_path).read_text()
    for words in (f"<!-- {text} -->", "a processor", *(["median of 2 pairs"] if name != "profile" else [])):
        assert words in picture


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path, capsys):
    assert plots.draw("step", tmp_path, tmp_path) is None
    assert "step" in capsys.readouterr().out


@pytest.fixture
def sides(tiny_llama, tmp_path):
    """The YAML of every side on a tiny model."""
    changes = {**LORA, "dataset_num_proc": 1, "learning_rate": 0.02}
    case = Case(length=48, model=tiny_llama, changes=changes, warm=True, block={"keep_eos": False})
    return rivals.yamls(case, tmp_path)


def test_the_authors_way_keeps_the_same_tokens(sides):
    fill_cache(sides["plugin"])
    assert rivals.same_tokens(sides["plugin"], sides["authors"]) == 1


def test_rho1_keeps_the_tokens_that_got_worse(sides):
    trainer, batches = build(sides["RHO-1"])
    step(trainer, next(batches))
    batch = next(batches)
    nll, kept = trainer.select(trainer.model, batch)
    response = batch["labels"] != -100
    with trainer.model.disable_adapter():
        excess = nll - trainer.select(trainer.model, batch)[0]
    assert kept.sum() == -(-response.sum() * 6 // 10)
    assert not kept[~response].any()
    assert excess[kept].min() >= excess[response & ~kept].max()


def test_a_profile_counts_every_operator_for_one_part(tiny_llama, tmp_path):
    case = Case(length=48, model=tiny_llama, changes={**LORA, "dataset_num_proc": 1})
    for side, has in (("plain", False), ("plugin", True)):
        spent = profile_step.profile(case.yaml(side, tmp_path), 1)
        assert spent.keys() - {"total"} <= plots.PARTS.keys()
        assert all(part in spent for part in ("output head and loss", "linear layers, backward", "adapter, forward"))
        assert ("history's forward pass" in spent) == ("selection" in spent) == has
        assert 0.5 * spent["total"] < sum(spent.values()) - spent["total"] <= 1.05 * spent["total"]
