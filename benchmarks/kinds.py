"""Steps of every kind that a run has, one after the other in one process, and the whole runs that they make.

    python benchmarks/kinds.py [--only HEAP ...] [--pairs 7]

SmolLM2-135M, LoRA r 16, float32, 2 x 512 tokens, a third of them prompt. A turn is a plain step and one of each kind,
on the same batch; a ratio is that of a turn. All trainers share a process, so that the machine's drift and the state of
the C library's heap meet all alike. A whole run is composed: its kinds by their shares, and what start, end and page
take of ten minutes (start_and_end.py). Writes outputs/benchmarks/kinds.json. Run nothing else meanwhile.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import NEVER_FREED, Case, asked, fill_cache, in_child, save, spread, time_pairs

from sstoken_plugin.training.sampling import EVERY

HEAPS: dict[str, dict[str, str]] = {"memory kept": NEVER_FREED, "default heap": {}}
KINDS = {
    "warm": Case(warm=True),
    "history": Case(),
    "attention": Case(block={"selector": "attention"}),
    "random": Case(block={"selector": "random"}),
    "position": Case(block={"selector": "position"}),
    "all": Case(block={"selector": "all"}),
}
# Of the steps of a run, by kind, under the defaults: a warm-up of a fifth, which reads no history. Of three epochs the
# second computes what the warm-up left out.
RUNS = {
    "one epoch": {"all": 0.2, "history": 0.8},
    "three epochs": {"all": 0.2, "history": 1 / 3, "warm": 1 - 0.2 - 1 / 3},
    "attention, one epoch": {"attention": 1.0},
    "random, one epoch": {"random": 1.0},
    "position, one epoch": {"position": 1.0},
    "all, one epoch": {"all": 1.0},
}
# Seconds of a run of ten minutes in start and end, by start_and_end.py, and that the page may take: trajectory.py.
START_AND_END, PAGE, RUN = 9.7, 6.0, 600.0


def composed(shares: dict[str, float], ratios: dict[str, float]) -> float:
    """Return the ratio of a whole run of ten minutes to a plain one.

    Args:
        shares: of the run's steps, by kind.
        ratios: of a step of each kind to a plain one.
    """
    steps = sum(share * ratios[kind] for kind, share in shares.items())
    # Kinds that rank by no history have a pass of it in their samples.
    unread = sum(share for kind, share in shares.items() if kind not in ("history", "warm"))
    samples = unread / EVERY * (ratios["history"] - ratios["warm"])
    return steps + samples + (START_AND_END + PAGE) / RUN


def time_kinds(folder: str, pairs: int) -> dict[str, list[float]]:
    """Return the seconds of steps of each kind and of plain ones, in turn."""
    configs = {"plain": Case().yaml("plain", Path(folder))}
    for name, case in KINDS.items():
        own = Path(folder) / name
        own.mkdir()
        configs[name] = case.yaml("plugin", own)
        if case.warm:
            fill_cache(configs[name])
    return time_pairs(configs, pairs)


def main() -> None:
    """Run the benchmark and print a table."""
    options = asked(__doc__, HEAPS, 7)
    for heap in options.only:
        with tempfile.TemporaryDirectory() as folder:
            seconds = in_child("kinds", "time_kinds", folder, options.pairs, **HEAPS[heap])
        turns: dict[str, list[float]] = {
            name: [own / plain for plain, own in zip(seconds["plain"], seconds[name], strict=True)] for name in KINDS
        }
        found: dict[str, Any] = {name: spread(ratios) for name, ratios in turns.items()}
        each = [dict(zip(turns, ratios, strict=True)) for ratios in zip(*turns.values(), strict=True)]
        runs = {name: spread([composed(shares, ratios) for ratios in each]) for name, shares in RUNS.items()}
        print(f"{heap}: a plain step takes {spread(seconds['plain'])['median']:.2f} s")
        for title, rows in (("step", found), ("run of ten minutes", runs)):
            for name, row in rows.items():
                print(f"  {title:18} {name:22} {row['median']:.3f} ({row['min']:.3f} to {row['max']:.3f})", flush=True)
        file = save("kinds", {heap: {"seconds": seconds, "steps": found, "runs": runs}})
    print(f"Written: {file}")


if __name__ == "__main__":
    main()
