"""The selectors: one table that config, step, set-up, monitor, report, page and docs read.

To add a selector, add a row to `_ROWS` and run `python scripts/write_configuration.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sstoken_plugin.selection.scores import blend, normalise, random_scores

# rel: REL, for which a run waits in its warm-up; history: the losses of the history, from the first step on;
# attention: prompt attention; path: a history that is given, rather than the model's own past.
Need = Literal["rel", "history", "attention", "path"]


@dataclass(frozen=True)
class Signals:
    """What a score may depend on. R response tokens of N samples; a signal that was not measured is None.

    Attributes:
        current: float32 [R], loss of the model in training, c, in nats.
        history: float32 [R], loss of the history model, h, in nats.
        rel: float32 [R], h - c (arXiv 2510.18250, Eq. 3).
        attention: float32 [R], attention on the prompt, A (Eq. 7).
        sample: int64 [R], number of the token's sample, 0 to N - 1, ascending.
        samples: N.
        has_prompt: bool [R], whether the token's sample has any prompt token.
        index_in_sample: int64 [R], place of the token in its response.
        fingerprint: int64 [R], hash of the token's sample.
        seed: for whatever is drawn; another one in each epoch.
        gamma: weight of REL against prompt attention, 0 to 1.
    """

    current: Tensor
    history: Tensor | None
    rel: Tensor | None
    attention: Tensor | None
    sample: Tensor
    samples: int
    has_prompt: Tensor
    index_in_sample: Tensor
    fingerprint: Tensor
    seed: int
    gamma: float

    def or_zero(self, signal: Tensor | None) -> Tensor:
        """Return a signal, float32 [R]; zeros if it was not measured, so that all tokens rank alike."""
        return torch.zeros_like(self.current) if signal is None else signal

    def scaled(self, signal: Tensor | None) -> Tensor:
        """Return a signal scaled to [0, 1] within each sample, float32 [R]; zeros if it was not measured."""
        return self.or_zero(None if signal is None else normalise(signal, self.sample, self.samples))


@dataclass(frozen=True)
class Selector:
    """One row of the table.

    In the words, `{gamma}` and `{rest}` stand for the weights of REL and attention, `{seed}` for the seed and `{least}`
    for `min_probability`.

    Attributes:
        name: value of `selector:`.
        docs: goes on from its name in docs/configuration.md: "`rel` uses REL alone".
        words: ends the start-up sentence "the best by ..."; where `ratio` is not read, "it trains on ...".
        page: ends the page's sentences "ranked by ..." (no `{seed}` here); "" for `words`.
        score: what ranks the tokens, float [R], the highest first; among equals the earlier token is kept, and a score
            that is not finite ranks last.
        needs: what the score reads.
        rel_weight: for a blend of REL and prompt attention, the weight of REL under a given `gamma:`; what its
            weight leaves out is not needed. The page's what-if starts from such a blend. None for other scores.
        reads: keys of the settings that count for this selector alone.
        warmup: ends the start-up sentence "in the first 20% of the optimizer steps ..."; "" if the selector may not
            stand as `warmup_selector`.
        keeps_all: whether no token is dropped, whatever `ratio` says.
        waits: whether another selector acts in the warm-up though this one does not read REL.
        is_threshold: whether every token is kept whose score is the logarithm of `min_probability` or more, however
            many those are of a sample; `ratio` is not read.
        is_position: whether the score is the place of a token, so that nobody need be warned that it is.
    """

    name: str
    docs: str
    words: str
    score: Callable[[Signals], Tensor]
    page: str = ""
    needs: frozenset[Need] = frozenset()
    rel_weight: Callable[[float], float] | None = None
    reads: frozenset[str] = frozenset()
    warmup: str = ""
    keeps_all: bool = False
    waits: bool = False
    is_threshold: bool = False
    is_position: bool = False

    @property
    def reads_ratio(self) -> bool:
        """Whether `ratio` says how many tokens of a sample are kept."""
        return not (self.keeps_all or self.is_threshold)

    def gamma(self, gamma: float) -> float:
        """Return the weight of REL in the score where the settings say `gamma`, 0 to 1."""
        return 0.0 if self.rel_weight is None else self.rel_weight(gamma)

    def needs_at(self, gamma: float) -> frozenset[Need]:
        """Return what the score reads where the settings say `gamma`."""
        if self.rel_weight is None:
            return self.needs
        weight = self.rel_weight(gamma)
        unread: set[Need] = {"rel"} if weight == 0 else {"attention"} if weight == 1 else set()
        return self.needs - unread

    def in_words(self, gamma: float, seed: int, min_probability: float) -> str:
        """Return its words for the start-up sentence."""
        return _filled(self.words, gamma, min_probability, seed)

    def on_page(self, gamma: float, min_probability: float) -> str:
        """Return its words for the page."""
        return _filled(self.page or self.words, gamma, min_probability)


def _filled(words: str, gamma: float, min_probability: float, seed: int | None = None) -> str:
    return words.format(gamma=f"{gamma:g}", rest=f"{1 - gamma:g}", seed=seed, least=f"{min_probability:.3g}")


def _blended(signals: Signals) -> Tensor:
    mass, rel = signals.or_zero(signals.attention), signals.scaled(signals.rel)
    if signals.gamma == 0:
        # REL is not always measured then, and 0 times what is not finite would count.
        rel = torch.where(signals.has_prompt, 0, rel)
    score = blend(rel, mass, signals.gamma, signals.has_prompt)
    return torch.where(torch.isfinite(signals.current), score, torch.nan)


def _rel(signals: Signals) -> Tensor:
    return signals.scaled(signals.rel)


def _excess(signals: Signals) -> Tensor:
    # The excess loss c - h of RHO-1 (arXiv 2404.07965, Eq. 3), scaled and ranked as REL is.
    return signals.scaled(None if signals.rel is None else -signals.rel)


def _lowest_history(signals: Signals) -> Tensor:
    return -signals.or_zero(signals.history)


def _lowest_current(signals: Signals) -> Tensor:
    # Ranks as the probability exp(-c) does, and tells apart those that float32 rounds to 1.
    return -signals.current


def _chance(signals: Signals) -> Tensor:
    return random_scores(signals.fingerprint, signals.index_in_sample, signals.seed)


def _place(signals: Signals) -> Tensor:
    return -signals.index_in_sample.float()


# Tried, and not kept: see "Rules of our own" in docs/evidence.md.


def _mean_of_sample(signals: Signals, signal: Tensor) -> Tensor:
    """Return the mean of a signal over the response tokens of each token's sample, float32 [R]."""
    total, count = signal.new_zeros(signals.samples), signal.new_zeros(signals.samples)
    total.scatter_add_(0, signals.sample, signal)
    count.scatter_add_(0, signals.sample, torch.ones_like(signal))
    return (total / count.clamp(min=1))[signals.sample]


def _capped(signals: Signals) -> Tensor:
    # min(h, mean h) - c, by way of REL, which is exactly zero where the model has not changed.
    if signals.history is None or signals.rel is None:
        return signals.or_zero(None)
    return signals.rel - torch.relu(signals.history - _mean_of_sample(signals, signals.history))


def _relative(signals: Signals) -> Tensor:
    if signals.history is None or signals.rel is None:
        return signals.or_zero(None)
    return signals.rel / torch.maximum(signals.history, signals.current).clamp(min=1e-8)


def _ranked(signals: Signals, signal: Tensor) -> Tensor:
    """Return the rank of each token in its sample, the lowest signal 0 and the highest 1, float32 [R]."""
    order = torch.argsort(signal, stable=True)
    order = order[torch.argsort(signals.sample[order], stable=True)]
    lengths = torch.zeros(signals.samples, dtype=torch.int64, device=signal.device)
    lengths.scatter_add_(0, signals.sample, torch.ones_like(signals.sample))
    start = torch.cumsum(lengths, 0) - lengths
    rank = torch.arange(len(order), device=signal.device) - start[signals.sample[order]]
    found = torch.zeros_like(signal).scatter_(0, order, rank.to(signal.dtype))
    return found / (lengths[signals.sample] - 1).clamp(min=1)


def _ranks(signals: Signals) -> Tensor:
    rel, mass = (_ranked(signals, signals.or_zero(each)) for each in (signals.rel, signals.attention))
    return blend(rel, mass, signals.gamma, signals.has_prompt)


def _flat_attention(signals: Signals) -> Tensor:
    # Less its mean at the same place of the other answers of the batch.
    mass, place = signals.or_zero(signals.attention), signals.index_in_sample
    size = int(place.max()) + 1 if len(place) else 0
    total, count = mass.new_zeros(size), mass.new_zeros(size)
    total.scatter_add_(0, place, mass)
    count.scatter_add_(0, place, torch.ones_like(mass))
    others = (total[place] - mass) / (count[place] - 1).clamp(min=1)
    return blend(signals.scaled(signals.rel), mass - others, signals.gamma, signals.has_prompt)


def _capped_blend(signals: Signals) -> Tensor:
    mass = signals.or_zero(signals.attention)
    return blend(signals.scaled(_capped(signals)), mass, signals.gamma, signals.has_prompt)


def _scaled_capped(signals: Signals) -> Tensor:
    return signals.scaled(_capped(signals))


def _probability(signals: Signals) -> Tensor:
    return torch.exp(-signals.current)


_BLENDS = frozenset({"rel", "history", "attention"})
_TRIED = (
    Selector("capped_rel", "", "REL, capped", _capped, needs=frozenset({"rel", "history"})),
    Selector("relative", "", "REL by the larger loss", _relative, needs=frozenset({"rel", "history"})),
    Selector("ranks", "", "ranks", _ranks, needs=_BLENDS, reads=frozenset({"gamma"}), rel_weight=lambda gamma: gamma),
    Selector(
        "flat_attention", "", "attention less that of its place", _flat_attention, needs=_BLENDS,
        reads=frozenset({"gamma"}), rel_weight=lambda gamma: gamma,
    ),
    Selector(
        "capped_blend", "", "capped REL and attention", _capped_blend, needs=_BLENDS, reads=frozenset({"gamma"}),
        rel_weight=lambda gamma: gamma,
    ),
    Selector("probability_later", "", "their probability", _lowest_current, waits=True),
    # Thresholds: 0 of `gain`, `min_probability` of the likeliest token's of `min_p`.
    Selector("gain", "", "a gain", _capped, needs=frozenset({"rel", "history"}), is_threshold=True),
    Selector(
        "min_p", "", "min-p of {least}", _lowest_current, reads=frozenset({"min_probability"}), waits=True,
        is_threshold=True,
    ),
    # No cut: the loss of each token times its score.
    Selector("soft_rel", "", "a weight", _rel, needs=frozenset({"rel"}), is_threshold=True),
    Selector("soft_capped", "", "a weight", _scaled_capped, needs=frozenset({"rel", "history"}), is_threshold=True),
    Selector("soft_probability", "", "a weight", _probability, waits=True, is_threshold=True),
)  # fmt: skip

_ROWS = (
    *_TRIED,
    Selector(
        "sstoken",
        docs="blends REL and prompt attention",
        words="{gamma} x REL + {rest} x prompt attention",
        page="{gamma} \u00d7 REL + {rest} \u00d7 prompt attention",
        score=_blended,
        needs=frozenset({"rel", "attention"}),
        rel_weight=lambda gamma: gamma,
        reads=frozenset({"gamma"}),
    ),
    Selector(
        "rel",
        docs="uses REL alone",
        words="REL",
        score=_rel,
        needs=frozenset({"rel"}),
        rel_weight=lambda _: 1.0,
    ),
    Selector(
        "attention",
        docs="uses prompt attention alone",
        words="prompt attention",
        score=_blended,
        needs=frozenset({"attention"}),
        rel_weight=lambda _: 0.0,
        warmup="the best by prompt attention",
    ),
    Selector(
        "random",
        docs="draws them at random (a control)",
        words="chance (seed {seed})",
        page="chance",
        score=_chance,
        reads=frozenset({"seed"}),
        warmup="random ones",
    ),
    Selector(
        "position",
        docs="takes the first tokens (a control)",
        words="position, first tokens first",
        score=_place,
        is_position=True,
    ),
    Selector(
        "reference",
        docs="is RHO-1's excess loss against the model at the `history` path",
        words="their excess loss against the history",
        page="the excess loss against the reference model",
        score=_excess,
        needs=frozenset({"history", "path"}),
    ),
    Selector(
        "lowest_base_loss",
        docs="keeps the tokens with the lowest loss under the history (arXiv 2501.14315)",
        words="their loss under the history, lowest first",
        score=_lowest_history,
        needs=frozenset({"history"}),
    ),
    Selector(
        "probability",
        docs="keeps those with the highest probability under the model in training, ProFit's score (arXiv 2601.09195)",
        words="their probability, highest first",
        score=_lowest_current,
    ),
    Selector(
        "threshold",
        docs="keeps every token whose probability under the model in training is `min_probability` or more, however "
        "many those are of a sample (ProFit, arXiv 2601.09195, here after a warm-up)",
        words="every response token with a probability of {least} or more",
        page="their probability: those with {least} or more were kept",
        score=_lowest_current,
        reads=frozenset({"min_probability"}),
        waits=True,
        is_threshold=True,
    ),
    Selector(
        "all",
        docs="takes every token (a control)",
        words="every response token",
        page="nothing: every response token was kept",
        score=_place,
        warmup="all of them",
        keeps_all=True,
    ),
)
SELECTORS = {row.name: row for row in _ROWS}


def selector_of(name: str) -> Selector:
    """Return the row of a selector.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SELECTORS:
        raise ValueError(f"sstoken.selector: {name!r} is not a selector; it is one of {', '.join(SELECTORS)}.")
    return SELECTORS[name]
