"""The selection itself: scores in, kept tokens out. Pure tensor functions that know no model.

Every function works on the R response tokens of a batch at once; `sample` gives the sample of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sstoken_plugin.selection.samples import mix

# The authors' code divides by (max - min + this).
EPSILON = 1e-8


def kept_per_sample(lengths: Tensor, ratio: float, ends: Tensor | None = None) -> Tensor:
    """Return how many tokens each sample keeps: k = ceil(ratio * n) (arXiv 2510.18250), int64 [N].

    Args:
        lengths: int64 [N], response tokens n of each sample.
        ratio: fraction to keep.
        ends: int64 [N], how many of them are kept whatever their score. They take half of the places at most, so that
            a short answer keeps more than its end: k is at least twice as many, as far as there are so many tokens.
    """
    # float64 as in the authors' code: the product decides ties such as 0.6 * 5.
    kept = torch.ceil(lengths.double() * ratio).long()
    return kept if ends is None else torch.maximum(kept, torch.minimum(2 * ends, lengths))


def normalise(rel: Tensor, sample: Tensor, samples: int) -> Tensor:
    """Scale REL to [0, 1] within each sample, over its finite values (arXiv 2510.18250).

    Args:
        rel: float [R], retrospective excess loss h - c of each response token.
        sample: int64 [R], sample number of each token.
        samples: N, the number of samples.

    Returns:
        float [R]. All zero in a sample whose REL is constant. Not finite where REL is not.
    """
    # A mask as an index would make the program wait for the device.
    finite, none = torch.isfinite(rel), rel.new_zeros(samples)
    low = none.scatter_reduce(0, sample, torch.where(finite, rel, torch.inf), "amin", include_self=False)
    high = none.scatter_reduce(0, sample, torch.where(finite, rel, -torch.inf), "amax", include_self=False)
    return (rel - low[sample]) / (high - low + EPSILON)[sample]


def blend(normalised_rel: Tensor, attention: Tensor, gamma: float, has_prompt: Tensor) -> Tensor:
    """Return gamma * R + (1 - gamma) * A, float [R] (arXiv 2510.18250).

    Args:
        normalised_rel: float [R].
        attention: float [R], attention mass on the prompt.
        gamma: weight of REL, 0 to 1.
        has_prompt: bool [R]; where a token's sample has no prompt, attention says nothing and REL decides.
    """
    return torch.where(has_prompt, gamma * normalised_rel + (1 - gamma) * attention, normalised_rel)


def keep_top(score: Tensor, sample: Tensor, kept: Tensor, first: Tensor | None = None) -> Tensor:
    """Mark the best-scoring tokens of each sample (arXiv 2510.18250).

    Args:
        score: float [R]; a score that is not finite ranks last.
        sample: int64 [R], ascending.
        kept: int64 [N], how many tokens each sample keeps.
        first: bool [R], tokens that rank before all others of their sample whatever their score.

    Returns:
        bool [R]. Among equal scores the earlier token is kept.
    """
    score = torch.where(torch.isfinite(score), score, -torch.inf)
    order = torch.argsort(score, descending=True, stable=True)
    if first is not None:
        order = order[torch.argsort(first[order].int(), descending=True, stable=True)]
    order = order[torch.argsort(sample[order], stable=True)]
    lengths = torch.zeros_like(kept).scatter_add_(0, sample, torch.ones_like(sample))
    start = torch.cumsum(lengths, 0) - lengths
    rank = torch.arange(len(score), device=score.device) - start[sample[order]]
    return torch.zeros_like(sample, dtype=torch.bool).scatter_(0, order, rank < kept[sample[order]])


def keep_above(score: Tensor, least: float, ends: Tensor | None = None) -> Tensor:
    """Mark the tokens whose score is `least` or more, bool [R]; a score that is not finite is not.

    Args:
        score: float [R].
        least: see there.
        ends: bool [R], tokens that are kept whatever their score.
    """
    kept = torch.isfinite(score) & (score >= least)
    return kept if ends is None else kept | ends


def random_scores(fingerprint: Tensor, index_in_sample: Tensor, seed: int) -> Tensor:
    """Return uniform numbers in [0, 1), float64 [R], that depend on nothing but the arguments.

    No generator has a state, so batching, packing, ranks and a resume do not change them.

    Args:
        fingerprint: int64 [R], hash of the token's sample.
        index_in_sample: int64 [R], place of the token in its response.
        seed: changes every number.
    """
    bits = mix(mix(fingerprint + mix(torch.full_like(fingerprint, seed))) + index_in_sample)
    return ((bits >> 11) & (2**53 - 1)).double() / 2**53


def jaccard_counts(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sizes of intersection and union of two bool [R] masks, int64 scalars."""
    return (one & other).sum(), (one | other).sum()
