"""Run by torchrun: one Axolotl configuration under one split into ranks and accumulation.

Each run with the plugin is followed by one without it, whose labels are the tokens that were kept. What each rank
saw goes into OUT/WORLD-rank-N.pt, for tests/test_ranks.py to compare.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from axolotl.core.trainers.base import AxolotlTrainer
from conftest import report_callback, run_axolotl
from material import STEADY
from transformers import Trainer

from sstoken_plugin.axolotl.trainer import SSTokenTrainer
from sstoken_plugin.engine.step import ScoredStep

WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


class Recorder:
    """Remembers the labels of the tokens kept in each micro-batch of this rank, and hands them out again."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []
        self.steps: list[tuple[tuple[int, ...], tuple[bool, ...]]] = []

    def watch(self) -> None:
        loss = ScoredStep.loss

        def record(step: ScoredStep, *args: Any, **kwargs: Any) -> Any:
            result = loss(step, *args, **kwargs)
            if not torch.is_grad_enabled():
                # Scored for the report page.
                return result
            layout = step.layout
            labels = torch.full((layout.shape[0] * layout.shape[1],), -100)
            labels[layout.position[step.kept]] = layout.target[step.kept]
            self.kept.append(labels.view(layout.shape))
            self.steps.append((tuple(layout.fingerprint.tolist()), tuple(step.kept.tolist())))
            return result

        ScoredStep.loss = record  # type: ignore[method-assign]

    def replay(self, batches: list[dict[str, torch.Tensor]]) -> None:
        for batch in batches:
            batch["labels"] = self.kept.pop(0).view_as(batch["labels"])


def main(file: Path, out: Path) -> None:
    config = {**json.loads(file.read_text()), **STEADY, "gradient_accumulation_steps": 4 // WORLD}
    # Axolotl does this at the end of each run, and there are more to come.
    end = dist.destroy_process_group
    dist.destroy_process_group = lambda *args: None
    recorder = Recorder()
    recorder.watch()
    collect, create = Trainer.get_batch_samples, AxolotlTrainer.__init__
    seen: dict[str, Any] = {}
    for counted in (False, True):

        def init(self: Any, *args: Any, counted: bool = counted, **kwargs: Any) -> None:
            create(self, *args, **kwargs)
            # Axolotl sets False, so that the normaliser is None; a release that does not will pass a count.
            self.model_accepts_loss_kwargs = counted

        AxolotlTrainer.__init__ = init  # type: ignore[method-assign]
        folder = out / f"{WORLD}-{RANK}-{counted}"
        folder.mkdir()
        ours = run_axolotl({**config, "output_dir": str(folder / "ours")}, folder)
        assert isinstance(ours.trainer, SSTokenTrainer)
        page = report_callback(ours.trainer)
        tables = page.kept_counts.tables(page.counts_of_kept())
        seen[f"ours, {counted}"] = {
            "losses": ours.losses, "weights": ours.weights, "steps": recorder.steps, "lines": ours.lines,
            "tables": list(map(vars, tables)), "moments": list(map(vars, page.trajectory.moments)),
            "page": (folder / "ours" / "sstoken" / "report.html").exists(),
        }  # fmt: skip

        def replay(self: Any, iterator: Any, count: int, device: Any) -> Any:
            batches = []
            for _ in range(count):
                try:
                    batches.append(next(iterator))
                except StopIteration:
                    break
            recorder.replay(batches)
            return collect(self, iter(batches), len(batches), device)

        Trainer.get_batch_samples = replay  # type: ignore[method-assign]
        without = {**config, "plugins": config["plugins"][1:], "sstoken": None, "output_dir": str(folder / "plain")}
        plain = run_axolotl(without, folder)
        Trainer.get_batch_samples = collect  # type: ignore[method-assign]
        assert not isinstance(plain.trainer, SSTokenTrainer)
        assert not recorder.kept
        seen[f"plain, {counted}"] = {"losses": plain.losses, "weights": plain.weights}
        recorder.steps = []
    torch.save(seen, out / f"{WORLD}-rank-{RANK}.pt")
    if dist.is_initialized():
        dist.barrier()
        end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
