"""From scored steps to logged numbers: every metric is a ratio of two counts that add up.

Sums over steps, micro-batches and ranks are exact, because only counts are summed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sstoken_plugin.engine.step import ScoredStep
from sstoken_plugin.selection import scores as selection
from sstoken_plugin.selection.selectors import selector_of

# Logged name: (numerator, denominator).
METRICS = {
    "sstoken/selected_ratio": ("kept", "response"),
    "sstoken/rel_mean": ("rel", "rel_tokens"),
    "sstoken/attention_mean": ("attention", "attention_tokens"),
    "sstoken/loss_selected": ("kept_loss", "kept_finite"),
    "sstoken/loss_unselected": ("dropped_loss", "dropped_finite"),
    "sstoken/signal_overlap": ("signals_both", "signals_either"),
    "sstoken/position_overlap": ("position_both", "position_either"),
    "sstoken/eos_selected": ("eos_kept", "eos"),
    "sstoken/gamma": ("gamma", "steps"),
    "sstoken/history_cache_hits": ("cached_samples", "history_samples"),
    "sstoken/not_finite": ("non_finite", "response"),
}
# Logged where it is not 0.
_IF_ANY = {"sstoken/not_finite"}
MEANINGS = {
    "sstoken/selected_ratio": "kept tokens per response token; above `ratio` where answers are short, and in a warm-up",
    "sstoken/rel_mean": "mean REL over response tokens, in nats",
    "sstoken/attention_mean": "mean share of attention on the prompt over response tokens",
    "sstoken/loss_selected": "mean loss of kept tokens, in nats",
    "sstoken/loss_unselected": "mean loss of dropped tokens, in nats",
    "sstoken/signal_overlap": "Jaccard index of the top k by REL alone and by attention alone; a threshold has no k",
    "sstoken/position_overlap": "Jaccard index of the kept tokens and the first k tokens",
    "sstoken/eos_selected": "share of the tokens that end a turn which were kept",
    "sstoken/gamma": "weight of REL in the score: 0 during the warm-up",
    "sstoken/history_cache_hits": "share of the samples whose history losses were asked for that came from the cache",
    "sstoken/not_finite": "share of response tokens whose loss or REL is not finite; other means leave them out",
}
# Not logged; the monitor reads it.
INTERNAL = {"leading": ("leading_kept", "free_kept")}
_WARNED = ("samples", "promptless_samples", "non_finite", "only_ends_samples", "nothing_samples")
COUNTS = sorted({name for pair in (*METRICS.values(), *INTERNAL.values()) for name in pair} | {*_WARNED})


def counts(step: ScoredStep) -> dict[str, Tensor]:
    """Count one scored step; every value is a scalar tensor, read without waiting for the device."""
    layout, scores, kept = step.layout, step.scores, step.kept
    kept_of_sample = layout.count(kept)
    first_k = layout.index_in_sample < kept_of_sample[layout.sample]
    others = ~step.turns.ends
    finite = torch.isfinite(scores.current)
    loss = torch.where(finite, scores.current, 0)
    free = kept & others
    position_both, position_either = selection.jaccard_counts(kept, first_k)
    one = loss.new_ones(())
    found = {
        "steps": one,
        "gamma": one * step.phase.gamma,
        "samples": one * len(layout.lengths),
        "response": one * len(layout.position),
        "kept": kept.sum(),
        "kept_loss": torch.where(kept, loss, 0).sum(),
        "kept_finite": (kept & finite).sum(),
        "dropped_loss": torch.where(kept, 0, loss).sum(),
        "dropped_finite": (~kept & finite).sum(),
        "position_both": position_both,
        "position_either": position_either,
        "leading_kept": (free & first_k).sum(),
        "free_kept": free.sum(),
        "eos": step.turns.ends.sum(),
        "eos_kept": (step.turns.ends & kept).sum(),
        "only_ends_samples": ((layout.count(others) > 0) & (layout.count(free) == 0) & (kept_of_sample > 0)).sum(),
        "nothing_samples": (kept_of_sample == 0).sum(),
        "promptless_samples": (~layout.has_prompt).sum(),
        "non_finite": (~finite).sum(),
    }
    if step.cached_samples is not None:
        found |= {"cached_samples": one * step.cached_samples, "history_samples": found["samples"]}
    if scores.attention is not None:
        seen = torch.isfinite(scores.attention)
        found |= {"attention": torch.where(seen, scores.attention, 0).sum(), "attention_tokens": seen.sum()}
    if scores.rel is not None:
        usable = torch.isfinite(scores.rel)
        found |= {
            "rel": torch.where(usable, scores.rel, 0).sum(),
            "rel_tokens": usable.sum(),
            "non_finite": (~usable).sum(),
        }
        config = step.settings.config
        if scores.attention is not None and not selector_of(config.selector).is_threshold:
            # The ratio of the settings, so that a warm-up on all tokens shows where the signals stand too.
            each = step.settings.kept_per_sample(layout, step.turns, config.ratio)
            by_rel = selection.keep_top(scores.rel, layout.sample, each)
            by_attention = selection.keep_top(scores.attention, layout.sample, each)
            both, either = selection.jaccard_counts(by_rel, by_attention)
            found |= {"signals_both": both, "signals_either": either}
    return found


class Totals:
    """Counts summed over the steps since they were last taken."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, found: dict[str, Tensor]) -> None:
        """Add the counts of one step."""
        zero = next(iter(found.values())).new_zeros(()).float()
        vector = torch.stack([found.get(name, zero).double() for name in COUNTS])
        self._sum = vector if self._sum is None else self._sum + vector

    def take(self, reduce: object = None) -> dict[str, float]:
        """Return the counts as numbers and start again at zero.

        Args:
            reduce: function that sums a float64 tensor over the ranks; every rank must call this then.
        """
        found = self.peek(reduce)
        self.clear()
        return found

    def clear(self) -> None:
        """Start again at zero."""
        self._sum = None

    def peek(self, reduce: object = None) -> dict[str, float]:
        """Return the counts as numbers; see `take`."""
        vector = torch.zeros(len(COUNTS), dtype=torch.float64) if self._sum is None else self._sum
        if callable(reduce):
            vector = reduce(vector)
        return dict(zip(COUNTS, vector.tolist(), strict=True))

    def restore(self, found: dict[str, float], device: torch.device) -> None:
        """Go on from counts that `peek` gave, or an earlier release, in which the history saw every sample."""
        found = {"history_samples": found.get("samples", 0.0), **found}
        self._sum = torch.tensor([found.get(name, 0.0) for name in COUNTS], dtype=torch.float64, device=device)


def ratios(total: dict[str, float], table: dict[str, tuple[str, str]] = METRICS) -> dict[str, float]:
    """Turn counts into metrics; one whose denominator is zero (nothing dropped, say) is left out."""
    return {
        name: total[above] / total[below]
        for name, (above, below) in table.items()
        if total[below] and (total[above] or name not in _IF_ANY)
    }
