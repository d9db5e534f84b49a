"""Run by torchrun: runs in which something for the page fails on one rank alone. Each must end on all.

What each rank saw goes into OUT/rank-N.json, for tests/test_rank_faults.py to look at.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from conftest import report_callback, run_axolotl

from sstoken_plugin.engine import step
from sstoken_plugin.report import callback, trajectory
from sstoken_plugin.report.breakdown import KeptCounts

RANK = int(os.environ.get("RANK", "0"))


@contextmanager
def failing(owner: Any, name: str, rank: int, calls: Callable[[int], bool]) -> Any:
    """Let a function fail on one rank, at those of its calls that are asked for, counted from 0."""
    own, count = getattr(owner, name), 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if rank == RANK and calls(count - 1):
            raise RuntimeError("made up, on this rank alone")
        return own(*args, **kwargs)

    setattr(owner, name, fail)
    try:
        yield
    finally:
        setattr(owner, name, own)


def first(call: int) -> bool:
    return call == 0


def later(call: int) -> bool:
    return call > 3


def always(call: int) -> bool:
    return True


def never(call: int) -> bool:
    return False


# Where, on which rank, and at which of its calls.
FAULTS: dict[str, tuple[Any, str, int, Callable[[int], bool]]] = {
    "the first moment, rank 1": (trajectory, "score_samples", 1, first),
    "the first moment, rank 0": (trajectory, "score_samples", 0, first),
    "a later moment": (trajectory, "score_samples", 1, later),
    "every moment": (trajectory, "score_samples", 1, always),
    "the texts": (trajectory, "records_of", 1, always),
    "the samples": (trajectory.Trajectory, "_candidates", 1, always),
    "the samples of the checkpoint": (trajectory.Trajectory, "_of_checkpoint", 1, always),
    "other samples in the checkpoint": (trajectory, "score_samples", 1, never),
    "the check of the first batch": (step, "watching_changes", 1, first),
    "what is counted": (KeptCounts, "_add", 1, later),
    "the tables": (KeptCounts, "tables", 0, always),
    "the page": (callback, "write_page", 0, always),
    "the table for trackers": (callback, "rows_of", 0, always),
}


def with_one_sample(file: Path) -> None:
    """Let the moments of a checkpoint be those of a run with less data."""
    found = json.loads(gzip.decompress(file.read_bytes()))
    for moment in found["moments"]:
        del moment["records"][1:]
    file.write_bytes(gzip.compress(json.dumps(found).encode()))


def main(file: Path, out: Path) -> None:
    config = json.loads(file.read_text())
    end = dist.destroy_process_group
    dist.destroy_process_group = lambda *args: None
    seen: dict[str, Any] = {}
    start = out / "0-0" / "out" / "checkpoint-6"
    for number, (name, fault) in enumerate(FAULTS.items()):
        folder = out / f"{RANK}-{number}"
        folder.mkdir()
        changes: dict[str, Any] = {"output_dir": str(folder / "out")}
        if name == "the samples of the checkpoint":
            changes |= {"resume_from_checkpoint": str(start), "max_steps": 8}
        if name == "other samples in the checkpoint":
            own = Path(shutil.copytree(start, folder / start.name))
            if RANK == 1:
                with_one_sample(own / "sstoken" / "moments.json.gz")
            changes |= {"resume_from_checkpoint": str(own), "max_steps": 8}
        with failing(*fault):
            run = run_axolotl({**config, **changes}, folder)
        moments = report_callback(run.trainer).trajectory.moments
        seen[name] = {
            "steps": run.trainer.state.global_step,
            "moments": [moment.label for moment in moments],
            "samples": [len(moment.records) for moment in moments],
            "counts": report_callback(run.trainer).counts_of_kept() is not None,
            "page": (folder / "out" / "sstoken" / "report.html").exists(),
            "weights": float(sum(weight.double().sum() for weight in run.weights.values())),
        }
    (out / f"rank-{RANK}.json").write_text(json.dumps(seen))
    dist.barrier()
    end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
