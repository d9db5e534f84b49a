"""What other ways of selecting compute in a step, rebuilt from the papers, in torch alone.

Nothing here uses sstoken_plugin. Each is the method at its cheapest on this path: the code that ssToken's authors
released computes the cross-entropy of all logits three times a step, here it is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

RATIO, GAMMA = 0.6, 0.5


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each token at its own place, float32 [B, S]; 0 where the label is -100.

    Args:
        logits: float [B, S, V].
        labels: int64 [B, S].
    """
    shifted = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return functional.pad(shifted.view(len(labels), -1), (1, 0))


def kept_by_authors(
    nll: Tensor, attentions: Tensor, past: Sequence[Tensor], labels: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Return the tokens that ssToken's authors keep (arXiv 2510.18250), bool [B, S]; the prompt is a prefix of a row.

    Args:
        nll: loss of each token, float32 [B, S].
        attentions: of the last layer, float [B, heads, S, S].
        past: the history's losses of each row, float32 [its length].
        labels: int64 [B, S].
        lengths: tokens of each row, padding excluded.
    """
    attention = attentions.detach().mean(1)
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for row, length in enumerate(lengths):
        prompt = int((labels[row, :length] == -100).sum())
        rel = past[row][prompt:] - nll[row, prompt:length].detach()
        rel = (rel - rel.min()) / (rel.max() - rel.min() + 1e-8)
        score = GAMMA * rel + (1 - GAMMA) * attention[row, prompt:length, :prompt].sum(1)
        kept[row, prompt + score.topk(math.ceil(RATIO * len(score))).indices] = True
    return kept


def kept_by_rho1(nll: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Return the tokens of a batch with the highest excess loss (arXiv 2404.07965), bool [B, S].

    Args:
        nll: loss of each token, float32 [B, S].
        reference: its loss under the reference model, float32 [B, S].
        labels: int64 [B, S].
    """
    response = (labels != -100).flatten()
    response[:: labels.shape[1]] = False
    excess = torch.where(response, (nll.detach() - reference).flatten(), -torch.inf)
    kept = torch.zeros_like(response)
    kept[excess.topk(math.ceil(RATIO * int(response.sum()))).indices] = True
    return kept.view_as(labels)
