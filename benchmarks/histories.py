"""Time and memory of a training step with each kind of history, against plain Axolotl, in pairs, in the same run.

    python benchmarks/histories.py [--batch 2] [--length 256] [--pairs 3] [--out FILE]

See step.py for how time and peak memory are measured. REL counts in every step timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from step import ROOT, build, configuration, peak_of, time_pairs, versions, write_data

FULL = {"adapter": None}
# Name: what differs from LoRA, the settings of the history. CACHE, ADAPTER and MODEL stand for folders.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LoRA, initial": ({}, {}),
    "LoRA, initial, cache filled": ({}, {"history_cache": "CACHE"}),
    "LoRA, ema": ({}, {"history": "ema"}),
    "LoRA, snapshot": ({}, {"history": "snapshot"}),
    "LoRA, path of an adapter": ({}, {"history": "ADAPTER"}),
    "LoRA, path of a full checkpoint": ({}, {"history": "MODEL"}),
    "full, initial": (FULL, {}),
    "full, initial, cache filled": (FULL, {"history_cache": "CACHE"}),
    "full, ema": (FULL, {"history": "ema"}),
}


def sides(case: str, folder: Path, data: Path, model: Path, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Return the YAMLs of both sides of a case."""
    changes, block = CASES[case]
    folders = {"CACHE": str(folder / "cache"), "ADAPTER": str(folder / "adapter"), "MODEL": str(model)}
    configs = {
        side: {**configuration(side, folder, data, model, batch, length), **changes} for side in ("plain", "plugin")
    }
    configs["plugin"]["sstoken"] |= {key: folders.get(value, value) for key, value in block.items()}
    return configs


def prepare(folder: Path, data: Path, model: Path, batch: int, length: int) -> None:
    """Make an adapter, and fill the cache for the whole data set."""
    from sstoken_plugin.history.losses import HistoryLosses
    from sstoken_plugin.scoring import score, work_left

    trainer, _ = build(sides("LoRA, initial, cache filled", folder, data, model, batch, length)["plugin"])
    trainer.model.save_pretrained(folder / "adapter")
    losses: HistoryLosses = trainer.selection.history
    for _ in score(losses, trainer.model, work_left(losses, trainer.train_dataset), 2048):
        pass


def peak_in_child(case: str, side: str, folder: Path) -> int:
    """Return the peak memory of one side in bytes, measured in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", f"{case}/{side}", "--folder", str(folder)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(output.split("PEAK")[1])


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "benchmarks" / "histories.json")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    from demo.model import unpack

    unpack(options.model)
    if options.peak_of:
        case, side = options.peak_of.split("/")
        data = options.folder / "data.jsonl"
        print("PEAK", peak_of(sides(case, options.folder, data, options.model, options.batch, options.length)[side]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.jsonl"
        write_data(data, options.length, 1 / 3)
        # In a process of its own, because a child's peak starts at its parent's.
        subprocess.run(
            [
                sys.executable, "-c",
                "import sys; from pathlib import Path; from histories import prepare; a = sys.argv; "
                "prepare(Path(a[1]), Path(a[2]), Path(a[3]), int(a[4]), int(a[5]))",
                str(folder), str(data), str(options.model), str(options.batch), str(options.length),
            ],
            check=True, cwd=Path(__file__).parent, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        plain = {kind: peak_in_child(f"{kind}, initial", "plain", folder) for kind in ("LoRA", "full")}
        peaks = {case: peak_in_child(case, "plugin", folder) for case in CASES}
        rows = {}
        for case in CASES:
            configs = sides(case, folder, data, options.model, options.batch, options.length)
            seconds = time_pairs(configs, options.pairs)
            ratios = [b / a for a, b in zip(seconds["plain"], seconds["plugin"], strict=True)]
            before = plain[case.split(",")[0]]
            rows[case] = {
                "seconds": seconds,
                "time_ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
                "peak_bytes": {"plain": before, "plugin": peaks[case]},
            }
            print(
                f"{case:32} time {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})   "
                f"peak {peaks[case] / before:.2f} ({(peaks[case] - before) / 2**20:+.0f} MiB)",
                flush=True,
            )
    result = {
        "case": {"batch": options.batch, "length": options.length, "pairs": options.pairs},
        "rows": rows,
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
