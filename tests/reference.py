"""The method of arXiv 2510.18250 once more: one sample at a time, full attention matrices, plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from sstoken_plugin.engine.modes import without_trace


def samples_of(batch: dict[str, Tensor]) -> Iterator[list[int]]:
    """Yield the flat positions of each sample of a padded or packed batch, without padding."""
    width = batch["input_ids"].shape[1]
    mask = batch.get("attention_mask")
    begins = batch["cu_seq_lens_q"].tolist() if "cu_seq_lens_q" in batch else []
    for row in range(len(batch["input_ids"])):
        if mask is not None and mask.dim() == 4:
            for sample in samples_that_see_each_other(mask[row, 0].tolist()):
                yield [row * width + column for column in sample]
            continue
        sample: list[int] = []
        for column in range(width):
            is_first = "position_ids" in batch and batch["position_ids"][row, column] == 0
            if (is_first or row * width + column in begins) and sample:
                yield sample
                sample = []
            if mask is None or mask[row, column]:
                sample.append(row * width + column)
        yield sample


def samples_that_see_each_other(mask: list[list[Any]]) -> Iterator[list[int]]:
    """Yield the tokens of each sample of a row, by a mask over pairs: True, or 0.0, where the row sees the column."""

    def sees(one: int, other: int) -> bool:
        value = mask[one][other]
        return value == 0.0 if isinstance(value, float) else bool(value)

    sample: list[int] = []
    for token in range(len(mask)):
        if any(sees(token, other) for other in sample):
            sample.append(token)
        elif sees(token, token):
            yield sample
            sample = [token]
    yield sample


def signals(model: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Return the loss of each token but the first, [L - 1], and the last layer's attention, mean over heads [L, L].

    Both are on the CPU, wherever the model is.
    """
    tokens = torch.tensor(ids, device=next(model.parameters()).device)[None]
    with without_trace(model):
        output = model(input_ids=tokens, output_attentions=True, use_cache=False)
    nll = functional.cross_entropy(output.logits[0, :-1].float(), tokens[0, 1:], reduction="none")
    return nll.cpu(), output.attentions[-1][0].float().mean(0).cpu()


def keep(rel: list[float], attention: list[float], ratio: float, gamma: float, first: list[bool]) -> list[bool]:
    """Choose among the response tokens of one sample; `first` are kept before all others (`keep_eos`)."""
    low, high = min(rel), max(rel)
    # float32, as everywhere in the plugin and in the authors' code: ties depend on it.
    scaled = (torch.tensor(rel) - low) / (torch.tensor(high) - low + 1e-8)
    score = (gamma * scaled + (1 - gamma) * torch.tensor(attention)).tolist()
    order = sorted(range(len(rel)), key=lambda i: (not first[i], -score[i], i))
    kept = set(order[: max(math.ceil(ratio * len(rel)), min(2 * sum(first), len(rel)))])
    return [i in kept for i in range(len(rel))]


def scored_samples(steps: list) -> Iterator[tuple[int, list[int], list[int], Tensor, list[int]]]:
    """Yield each sample of each recorded step.

    The number of its step, its tokens, the places of its response in them, its prompt as a mask over them, and the rows
    of the step's scores that are its response.
    """
    for number, (step, batch) in enumerate(steps):
        rows = {position: row for row, position in enumerate(step.layout.position.tolist())}
        ids, labels = batch["input_ids"].flatten().cpu(), batch["labels"].flatten().cpu()
        for sample in samples_of(batch):
            response = [i for i in range(1, len(sample)) if labels[sample[i]] != -100]
            if response:
                yield (
                    number, ids[sample].tolist(), response, labels[sample] == -100,
                    [rows.pop(sample[i]) for i in response],
                )  # fmt: skip
        assert not rows, "the step scored tokens that belong to no sample"


def assert_kept_by_the_rule(step: Any, rows: list[int], config: Any) -> None:
    """Check what was kept of one sample, given its signals."""
    rel, attention = (signal[rows].tolist() for signal in (step.scores.rel, step.scores.attention))
    assert step.kept[rows].tolist() == keep(rel, attention, config.ratio, config.gamma, step.turns.ends[rows].tolist())


def past_weights(kind: str, weights: list[dict[str, Tensor]], accumulation: int) -> Iterator[dict[str, Tensor]]:
    """Yield the weights of the history at each micro-batch, from those that the run had.

    `ema` has a decay of 0.7, `snapshot` is taken every 2 steps, and every other kind is what the run began with.
    """
    first = weights[::accumulation]
    history = first[0]
    for index, now in enumerate(first):
        if kind == "ema":
            history = {name: 0.7 * history[name] + 0.3 * now[name] for name in now} if index else now
        elif kind == "snapshot" and index % 2 == 0:
            history = now
        yield from [history] * accumulation


def assert_every_step_by_the_method(
    run: Any,
    steps: list,
    weights: list[dict[str, Tensor]],
    model: Any,
    tolerance: float,
    attention_tolerance: float | None = None,
    past: list[dict[str, Tensor]] | None = None,
) -> None:
    """Check losses, history, attention and selection of every step of a run.

    Args:
        run: what the fixture `train` gave.
        steps: what the fixture of this name recorded.
        weights: those that train, at the beginning of each of these micro-batches.
        model: one with eager attention that computes what the run's does, at any of these weights. It is changed.
        tolerance: how far rounding may move a loss.
        attention_tolerance: the same for attention, which is 1 at most; `tolerance` if None.
        past: the weights of the history at each micro-batch; those that the run began with if None.
    """
    past = past or [weights[0]] * len(weights)
    losses = {"atol": tolerance, "rtol": 0}
    shares = {**losses, "atol": tolerance if attention_tolerance is None else attention_tolerance}
    gain = 0.0
    for number, ids, response, prompt, rows in scored_samples(steps):
        step = steps[number][0]
        assert not model.load_state_dict(weights[number], strict=False).unexpected_keys
        current, attention = signals(model, ids)
        model.load_state_dict(past[number], strict=False)
        history, _ = signals(model, ids)
        where = torch.tensor(response)
        assert_close(step.scores.current[rows].cpu(), current[where - 1], **losses)
        assert_close(step.scores.history[rows].cpu(), history[where - 1], **losses)
        assert_close(step.scores.attention[rows].cpu(), attention[where][:, prompt].sum(1), **shares)
        assert_kept_by_the_rule(step, rows, run.trainer.sstoken.selection.config)
        gain = max(gain, (history - current).abs().max().item())
    assert len(steps) == len(weights) > 2
    assert gain > 0.01, "the weights hardly changed, the history would say nothing"
