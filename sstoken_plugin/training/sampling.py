"""On which micro-batches a run measures signals that only its metrics show."""

from __future__ import annotations

# Of a run, micro-batches for each of which one is sampled. A pass of the history takes up to 0.4 of a step on the same
# micro-batch (benchmarks/step.py), so that samples take 2 % of the time at most.
EVERY = 20


def is_sampled(number: int, total: int, width: int = 1) -> bool:
    """Tell whether a micro-batch is a sample: one in `EVERY`, evenly spread, at least one in a run.

    Nothing but the arguments decides, so that a resume and every rank sample the same ones.

    Args:
        number: of the micro-batch in the run, from 0.
        total: micro-batches of the run.
        width: how many it stands for, where an optimizer step has fewer than the others.
    """
    samples = max(total // EVERY, 1)

    def begun(count: int) -> int:
        """Return how many samples lie among the first `count` micro-batches, each in the middle of its share."""
        return (2 * count * samples + total) // (2 * total)

    return begun(number + width) > begun(number)
