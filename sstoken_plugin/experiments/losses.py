"""The loss of held-out responses: over all their tokens, whatever an arm was trained on, and by kind of token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.axolotl.experiment import Trained
from sstoken_plugin.engine.output_head import ProvenWays, response_nll
from sstoken_plugin.experiments.kinds import KINDS, kinds
from sstoken_plugin.experiments.measures import Measure
from sstoken_plugin.selection.batching import in_batches, padded
from sstoken_plugin.selection.samples import BatchLayout, samples_in

# Tokens of a batch, padding included. Of a head that has to be run as it is, those of its response tokens have logits,
# in the precision of the model, at once.
BATCH_TOKENS = 1024


def measure_losses(trained: Trained, rows: Iterable[Mapping[str, Any]]) -> dict[str, Measure]:
    """Return the mean loss of all response tokens, in nats a token, and of each kind that there is.

    A mean over tokens, not over samples or batches, so that it does not depend on how samples are put together.

    Args:
        trained: the model.
        rows: of a prepared data set, see `samples.as_batch`; packed ones count by their samples.
    """
    losses, found = token_losses(trained, rows)
    measures = {"loss": Measure.of("loss", losses.sum().item(), len(losses), "lower")}
    for number, kind in enumerate(KINDS):
        own = losses[found == number]
        if len(own):
            measures[f"loss_{kind}"] = Measure.of(f"loss_{kind}", own.sum().item(), len(own), "lower")
    return measures


def token_losses(trained: Trained, rows: Iterable[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Return the loss of each response token, float64 [R], and its kind, int64 [R], in an order of their own."""
    samples = [sample for row in rows for sample in samples_in(row)]
    # Of like length together: less padding.
    samples.sort(key=lambda sample: sample["input_ids"].shape[1])
    losses, found = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)]
    ways = ProvenWays()
    for some in in_batches(samples, BATCH_TOKENS):
        batch = {name: column.to(trained.model.device) for name, column in padded(some).items()}
        with torch.no_grad(), trained.precision():
            losses.append(response_nll(trained.model, batch, BatchLayout.of(batch), ways).double().cpu())
        found += [kinds(sample, trained.tokenizer, trained.ends) for sample in some]
    return torch.cat(losses), torch.cat(found)
