"""Which tokens are kept: parity with the authors' code, and the rules that hold for any scores."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from material import SHARED

from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.selection.scores import blend, keep_above, keep_top, kept_per_sample, normalise, random_scores

SIGNALS = ("current_nll", "history_nll", "prompt_attention")
FEW = json.loads((Path(__file__).parent / "data" / "parity.json").read_text())
ALL = SHARED / "parity" / "dev.json"


def read_all():
    if not ALL.exists():
        pytest.skip(f"{ALL} is not here; tests/data/parity.json holds some of its cases")
    return json.loads(ALL.read_text())


def joined(lists):
    return list(chain.from_iterable(lists))


def labels_of(case):
    return [-100] * case["prompt_len"] + case["input_ids"][case["prompt_len"] :]


def packed(cases):
    """All cases in one packed row; of one case, the plain batch of one sample."""
    rows = {
        "input_ids": [case["input_ids"] for case in cases],
        "labels": [labels_of(case) for case in cases],
        "position_ids": [list(range(len(case["input_ids"]))) for case in cases],
    }
    return {key: torch.tensor([joined(lists)]) for key, lists in rows.items()}


def keep(cases, ratio, gamma, dtype):
    """Select in a packed row and return the kept positions of the row as booleans."""
    phase = Phase("sstoken", gamma, ratio)
    layout = BatchLayout.of(packed(cases))
    signals = [torch.tensor(joined(c[key] for c in cases), dtype=dtype)[layout.position] for key in SIGNALS]
    selection = TokenSelection(SSTokenConfig(keep_eos=False), None, HistoryLosses(None), [])
    score = selection.score(phase, layout, *signals).score
    kept = keep_top(score, layout.sample, kept_per_sample(layout.lengths, ratio))
    row = torch.zeros(layout.shape[1], dtype=torch.bool)
    row[layout.position[kept]] = True
    return row.tolist()


def naive(case, ratio, gamma):
    """The method as in arXiv 2510.18250, one sample, no tensors."""
    response = range(case["prompt_len"], len(case["input_ids"]))
    rel = {i: case["history_nll"][i] - case["current_nll"][i] for i in response}
    low, high = min(rel.values()), max(rel.values())
    score = {
        i: gamma * ((rel[i] - low) / (high - low + 1e-8)) + (1 - gamma) * case["prompt_attention"][i] for i in response
    }
    best = sorted(response, key=lambda i: -score[i])[: math.ceil(ratio * len(response))]
    return [i in best for i in range(len(case["input_ids"]))]


@pytest.mark.parametrize("case", FEW, ids=lambda case: f"ratio {case['ratio']} gamma {case['gamma']}")
def test_selects_as_the_authors_code_does(case):
    assert keep([case], case["ratio"], case["gamma"], torch.float32) == case["selected"]


def test_selects_as_the_authors_code_does_in_every_shared_case():
    for number, case in enumerate(read_all()):
        selected = keep([case], case["ratio"], case["gamma"], torch.float32)
        assert selected == case["selected"], f"case {number}"


@pytest.mark.parametrize(("ratio", "gamma"), [(0.6, 0.5), (0.05, 0.25), (0.9, 1.0), (0.3, 0.0)])
@pytest.mark.parametrize("read", [lambda: FEW, read_all], ids=["few", "all"])
def test_packed_samples_are_selected_as_if_each_were_alone(read, ratio, gamma):
    cases = read()
    expected = joined(naive(case, ratio, gamma) for case in cases)
    # float64, so that rounding cannot order two tokens differently in Python and in torch.
    assert keep(cases, ratio, gamma, torch.float64) == expected


def test_kept_tokens_are_the_ratio_of_each_sample_rounded_up():
    lengths = torch.tensor([0, 1, 2, 3, 10, 11, 1000])
    assert kept_per_sample(lengths, 0.6).tolist() == [0, 1, 2, 2, 6, 7, 600]
    assert kept_per_sample(lengths, 0.001).tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert kept_per_sample(lengths, 1.0).tolist() == lengths.tolist()


def kept_tokens(scores, k, first=None):
    """Keep the top k of one sample and return the kept indices."""
    score = torch.tensor(scores)
    first = None if first is None else torch.isin(torch.arange(len(score)), torch.tensor(first))
    kept = keep_top(score, torch.zeros(len(score), dtype=torch.long), torch.tensor([k]), first)
    return kept.nonzero().flatten().tolist()


def test_a_small_score_of_one_sample_does_not_lose_to_another_sample():
    score, sample = torch.tensor([0.1, 0.2, 0.9, 0.8, 0.7]), torch.tensor([0, 0, 1, 1, 1])
    assert keep_top(score, sample, torch.tensor([1, 2])).tolist() == [False, True, True, True, False]


def test_end_tokens_count_towards_the_kept():
    assert kept_tokens([0.9, 0.8, 0.7, 0.0], 2, first=[3]) == [0, 3]


def test_more_end_tokens_than_kept_ones_still_keep_k():
    assert kept_tokens([0.9, 0.1, 0.3, 0.2], 2, first=[1, 2, 3]) == [2, 3]


def test_an_end_token_is_kept_even_if_its_score_is_not_finite():
    assert kept_tokens([0.9, math.nan, 0.7], 1, first=[1]) == [1]


def test_of_equal_scores_the_earlier_token_is_kept():
    assert kept_tokens([0.5] * 40, 7) == list(range(7))
    assert kept_tokens([0.1, 0.5, 0.1, 0.5, 0.1], 3) == [0, 1, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_ranks_last(bad):
    assert kept_tokens([bad, -5.0, bad, 0.1], 2) == [1, 3]
    assert kept_tokens([bad, -5.0, bad, 0.1], 3) == [0, 1, 3]


def test_a_loss_that_is_not_finite_leaves_the_scale_of_the_others():
    rel = torch.tensor([1.0, math.inf, 3.0, 2.0, math.nan])
    scaled = normalise(rel, torch.zeros(5, dtype=torch.long), 1)
    torch.testing.assert_close(scaled[[0, 2, 3]], torch.tensor([0.0, 1.0, 0.5]))
    assert not scaled[[1, 4]].isfinite().any()


def test_constant_rel_scales_to_zero():
    rel, sample = torch.tensor([0.3, 0.3, 0.3, -1.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    assert normalise(rel, sample, 2).tolist() == [0, 0, 0, 0, 1]


def test_a_sample_without_prompt_is_ranked_by_rel_alone():
    scaled, mass = torch.tensor([0.2, 0.9]), torch.tensor([0.0, 0.7])
    for gamma in (0.0, 0.5):
        score = blend(scaled, mass, gamma, torch.tensor([False, True]))
        torch.testing.assert_close(score, torch.tensor([0.2, gamma * 0.9 + (1 - gamma) * 0.7]))


def random_of(batch, seed=7):
    """Random scores of a batch, as one list for each sample."""
    layout = BatchLayout.of(batch)
    scores = random_scores(layout.fingerprint[layout.sample], layout.index_in_sample, seed)
    return [part.tolist() for part in scores.split(layout.lengths.tolist())]


def padded(cases, side):
    width = max(len(case["input_ids"]) for case in cases)

    def pad(lists, fill):
        filled = [[fill] * (width - len(x)) for x in lists]
        both = zip(filled, lists, strict=True)
        return torch.tensor([f + x if side == "left" else x + f for f, x in both])

    return {
        "input_ids": pad([case["input_ids"] for case in cases], 0),
        "labels": pad([labels_of(case) for case in cases], -100),
        "attention_mask": pad([[1] * len(case["input_ids"]) for case in cases], 0),
    }


def test_random_scores_depend_on_the_sample_and_the_seed_alone():
    alone = [random_of(packed([case]))[0] for case in FEW]
    assert random_of(packed(FEW)) == alone
    assert random_of(packed(FEW[::-1])) == alone[::-1]
    assert random_of(padded(FEW, "left")) == alone
    assert random_of(padded(FEW, "right")) == alone
    other_seed = random_of(packed(FEW), seed=8)
    assert all(set(one).isdisjoint(other) for one, other in zip(alone, other_seed, strict=True))
    assert len({score for scores in alone for score in scores}) == sum(map(len, alone))


def test_random_scores_are_uniform():
    index = torch.arange(100)
    for seed in (0, 1, -1, 2**40):
        scores = torch.stack([random_scores(torch.full((100,), sample), index, seed) for sample in range(100)])
        counts = torch.histc(scores.float(), bins=10, min=0, max=1)
        # 1000 expected in a bin, with a standard deviation of 30.
        assert counts.sum() == 10_000
        assert (counts - 1000).abs().max() < 150
        assert abs(scores.mean() - 0.5) < 0.015
        assert abs(torch.corrcoef(torch.stack([scores[:, :-1].flatten(), scores[:, 1:].flatten()]))[0, 1]) < 0.05


def test_a_threshold_keeps_what_reaches_it_and_ends_of_turns_whatever_their_score():
    score = torch.tensor([-1.0, -3.0, -3.5, math.nan, -math.inf, -9.0])
    ends = torch.tensor([False, False, False, False, False, True])
    assert keep_above(score, -3.0).tolist() == [True, True, False, False, False, False]
    assert keep_above(score, -3.0, ends).tolist() == [True, True, False, False, False, True]
