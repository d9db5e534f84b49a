"""The table of selectors: its scores against plain Python, and what config, step and start-up line read from it."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import pytest
import torch

from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.selection.selectors import SELECTORS, Signals, selector_of
from sstoken_plugin.training.setup import describe

LENGTHS = (7, 1, 12)
GAMMAS = (0.0, 0.3, 1.0)


def drawn(seed=0, gamma=0.3, has_prompt=True):
    """Made-up signals of three samples."""
    numbers = random.Random(seed)
    count = sum(LENGTHS)
    current, history, attention = (torch.tensor([numbers.random() for _ in range(count)]) for _ in range(3))
    sample = torch.tensor([number for number, length in enumerate(LENGTHS) for _ in range(length)])
    return Signals(
        current=current, history=history, rel=history - current, attention=attention, sample=sample,
        samples=len(LENGTHS), has_prompt=torch.full_like(sample, has_prompt, dtype=torch.bool),
        index_in_sample=torch.tensor([place for length in LENGTHS for place in range(length)]),
        fingerprint=sample * 1234567 + 89, seed=5, gamma=gamma,
    )  # fmt: skip


def scaled(values):
    low, high = min(values), max(values)
    return [(value - low) / (high - low + 1e-8) for value in values]


def mixed(number):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), in integers of any size."""
    number &= 2**64 - 1
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & 2**64 - 1
    return number ^ (number >> 31)


def chance(one):
    start = mixed(one["fingerprint"][0] + mixed(one["seed"]))
    return [(mixed(start + place) >> 11) / 2**53 for place in one["place"]]


# One sample at a time: current c, history h and attention a, weight g of REL, and the place in the response.
PLAIN = {
    "sstoken": lambda one: [
        one["g"] * rel + (1 - one["g"]) * a for rel, a in zip(scaled(one["rel"]), one["a"], strict=True)
    ],
    "rel": lambda one: scaled(one["rel"]),
    "attention": lambda one: one["a"],
    "random": chance,
    "position": lambda one: [-place for place in one["place"]],
    "reference": lambda one: scaled([-rel for rel in one["rel"]]),
    "lowest_base_loss": lambda one: [-h for h in one["h"]],
    "probability": lambda one: [-c for c in one["c"]],
    "threshold": lambda one: [-c for c in one["c"]],
    "all": lambda one: [-place for place in one["place"]],
}


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", SELECTORS)
def test_a_score_is_what_plain_python_makes_of_the_numbers(name, gamma):
    row = selector_of(name)
    signals = drawn(gamma=row.gamma(gamma))
    parts = row.score(signals).split(LENGTHS)
    for number, part in enumerate(parts):
        own = signals.sample == number
        current, history = signals.current[own].tolist(), signals.history[own].tolist()
        one = {
            "c": current, "h": history, "rel": [h - c for h, c in zip(history, current, strict=True)],
            "a": signals.attention[own].tolist(), "place": range(LENGTHS[number]), "g": signals.gamma,
            "fingerprint": signals.fingerprint[own].tolist(), "seed": signals.seed,
        }  # fmt: skip
        assert part.tolist() == pytest.approx(PLAIN[name](one), abs=1e-6), number


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", SELECTORS)
def test_a_score_reads_what_the_row_says_that_it_needs(name, gamma):
    row = selector_of(name)
    signals = drawn(gamma=row.gamma(gamma))
    needs = row.needs_at(gamma)
    score = row.score(signals)
    without_history = row.score(replace(signals, history=None, rel=None))
    assert torch.equal(score, without_history) is needs.isdisjoint({"rel", "history"})
    assert torch.equal(score, row.score(replace(signals, attention=None))) is ("attention" not in needs)
    assert torch.equal(score, row.score(replace(signals, seed=6))) is ("seed" not in row.reads)
    assert "gamma" not in row.reads or not torch.equal(score, row.score(replace(signals, gamma=0.9)))


@pytest.mark.parametrize("name", [name for name, row in SELECTORS.items() if row.needs])
def test_where_its_signals_were_not_measured_the_first_tokens_are_kept(name):
    signals = replace(drawn(), history=None, rel=None, attention=None)
    assert selector_of(name).score(signals).tolist() == [0] * sum(LENGTHS)


def test_without_a_prompt_attention_gives_way_to_rel():
    signals = drawn(gamma=0.0, has_prompt=False)
    assert torch.equal(selector_of("attention").score(signals), selector_of("rel").score(signals))


def test_every_row_has_words_and_nothing_in_them_is_left_open():
    for name, row in SELECTORS.items():
        assert row.name == name
        assert row.docs
        assert f"`{name}` {row.docs}" in SSTokenConfig.model_fields["selector"].description
        words = row.in_words(0.25, 7, 0.05)
        assert words
        assert not re.search("[{}]", words)
        assert not re.search("[{}`]|None", row.on_page(0.25, 0.05))
        # What the page fills in.
        assert set(re.findall(r"\{(.*?)\}", row.page or row.words)) <= {"gamma", "rest", "least"}


def test_an_unknown_selector_is_an_error_and_never_ranks():
    with pytest.raises(ValueError, match=r"^sstoken\.selector: 'rho1' is not a selector; it is one of sstoken, rel, "):
        selector_of("rho1")
    layout = BatchLayout.of({"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, 6, 7]])})
    selection = TokenSelection(SSTokenConfig(selector="position"), None, None, [])
    with pytest.raises(ValueError, match="'rho1' is not a selector"):
        selection.score(Phase("rho1", 0.0, 0.5), layout, torch.rand(2), None, None)


@pytest.mark.parametrize(
    ("block", "history", "rel", "attention", "warmup"),
    [
        ({}, True, True, True, True),
        ({"warmup_ratio": 0.0}, True, True, True, False),
        ({"gamma": 0.0}, False, False, True, False),
        ({"gamma": 1.0}, True, True, False, True),
        ({"gamma": 1.0, "warmup_selector": "attention"}, True, True, True, True),
        ({"gamma": 1.0, "warmup_ratio": 0.0}, True, True, False, False),
        ({"selector": "rel"}, True, True, False, True),
        ({"selector": "rel", "gamma": 0.0, "warmup_selector": "random"}, True, True, False, True),
        ({"selector": "attention", "gamma": 1.0}, False, False, True, False),
        ({"selector": "random"}, False, False, False, False),
        ({"selector": "position"}, False, False, False, False),
        ({"selector": "reference", "history": "a/path"}, True, False, False, False),
        ({"selector": "lowest_base_loss"}, True, False, False, False),
        ({"selector": "probability"}, False, False, False, False),
        ({"selector": "threshold", "warmup_selector": "all"}, False, False, False, True),
        ({"selector": "threshold", "warmup_selector": "attention"}, False, False, True, True),
        ({"selector": "threshold", "warmup_ratio": 0.0}, False, False, False, False),
        ({"selector": "all"}, False, False, False, False),
    ],
    ids=str,
)
def test_what_the_settings_need(block, history, rel, attention, warmup):
    config = SSTokenConfig.from_block(block)
    assert (config.needs_history, config.ranks_by_rel, config.ranks_by_attention, config.has_warmup) == (
        history, rel, attention, warmup,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("block", "idle"),
    [
        ({"gamma": 0.3, "seed": 3}, ["seed"]),
        ({"warmup_selector": "random", "seed": 3}, []),
        ({"warmup_selector": "random", "seed": 3, "warmup_ratio": 0.0}, ["warmup_selector", "seed"]),
        ({"selector": "random", "gamma": 0.3, "seed": 3, "warmup_ratio": 0.1}, ["gamma", "warmup_ratio"]),
        ({"selector": "attention", "attention_layer": 0}, []),
        ({"selector": "position", "attention_layer": 0}, ["attention_layer"]),
        ({"selector": "reference", "history": "a/path"}, []),
        ({"selector": "all", "ratio": 0.5, "keep_eos": False}, ["ratio", "keep_eos"]),
        ({"min_probability": 0.1}, ["min_probability"]),
        ({"selector": "threshold", "min_probability": 0.1, "warmup_ratio": 0.1, "keep_eos": False}, []),
        ({"selector": "threshold", "warmup_selector": "random", "ratio": 0.5}, []),
        ({"selector": "threshold", "warmup_ratio": 0.0, "ratio": 0.5}, ["ratio"]),
    ],
    ids=str,
)
def test_keys_that_no_selector_of_the_run_reads_are_named(block, idle):
    sentences = SSTokenConfig.from_block(block).keys_without_effect()
    assert [sentence.split(":")[0] for sentence in sentences] == [f"sstoken.{key}" for key in idle]


def test_the_phase_of_a_step_weighs_rel_as_the_selector_does():
    def phase(in_warmup=False, **block):
        found = Phase.of(SSTokenConfig(ratio=0.4, gamma=0.7, **block), in_warmup=in_warmup)
        return found.rule, found.gamma, found.ratio

    assert phase() == ("sstoken", 0.7, 0.4)
    assert phase(in_warmup=True) == ("all", 0.0, 1.0)
    assert phase(in_warmup=True, warmup_selector="attention") == ("attention", 0.0, 0.4)
    assert phase(selector="rel") == ("rel", 1.0, 0.4)
    assert phase(selector="attention", in_warmup=True) == ("attention", 0.0, 0.4)
    assert phase(selector="random") == ("random", 0.0, 0.4)
    assert phase(selector="all") == ("all", 0.0, 1.0)
    assert phase(selector="threshold") == ("threshold", 0.0, 1.0)


def test_a_threshold_drops_tokens_and_plain_training_does_not():
    config = SSTokenConfig(selector="threshold", min_probability=0.25, warmup_selector="all")
    phase = Phase.of(config)
    assert phase.least == pytest.approx(math.log(0.25))
    assert not phase.keeps_everything
    assert Phase.of(config, in_warmup=True).keeps_everything


BEST = "60% of each sample's response tokens, the best by "


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (
            {"gamma": 0.25, "warmup_selector": "attention"},
            BEST + "0.25 x REL + 0.75 x prompt attention (in the first 20% of the optimizer steps the best by prompt "
            "attention)",
        ),
        (
            {"selector": "rel"},
            BEST + "REL (in the first 20% of the optimizer steps all of them)",
        ),
        (
            {"selector": "rel", "warmup_selector": "random", "warmup_ratio": 0.5},
            BEST + "REL (in the first 50% of the optimizer steps random ones)",
        ),
        ({"selector": "attention"}, BEST + "prompt attention"),
        ({"selector": "random", "seed": 3}, BEST + "chance (seed 3)"),
        ({"selector": "position"}, BEST + "position, first tokens first"),
        ({"selector": "reference", "history": "a/path"}, BEST + "their excess loss against the history"),
        ({"selector": "lowest_base_loss"}, BEST + "their loss under the history, lowest first"),
        ({"selector": "probability"}, BEST + "their probability, highest first"),
        ({"selector": "all"}, "every response token"),
        (
            {"selector": "rel", "ratio": 0.625, "warmup_ratio": 0.125},
            "62.5% of each sample's response tokens, the best by REL (in the first 12.5% of the optimizer steps all of "
            "them)",
        ),
        (
            {"selector": "threshold", "min_probability": 0.05, "warmup_selector": "all"},
            "every response token with a probability of 0.05 or more (in the first 20% of the optimizer steps all of "
            "them)",
        ),
    ],
    ids=str,
)
def test_the_start_up_line_says_what_ranks(block, sentence):
    selection = TokenSelection(SSTokenConfig.from_block(block), None, None, [])
    assert describe(selection, None) == f"ssToken is active: it trains on {sentence}."
