"""What a user could pick instead of the plugin: time and peak memory of a step, against plain Axolotl, in turn.

    python benchmarks/rivals.py [--only NAME ...] [--pairs 7]

SmolLM2-135M in float32 with LoRA. The sides are plain Axolotl, the plugin with its cache filled, ssToken as its
authors run it (attention matrices, all logits, losses of the history computed ahead) and RHO-1 (a second model in
memory, run in every step); rival_trainers.py has the last two. All take a step in turn on the same batches, and ratios
are to the plain step of the same turn. Before that, the plugin and the authors' way select on the same weights and
batches: the share of kept tokens that both keep stands in the row. Writes outputs/benchmarks/rivals.json and draws it
(`pip install '.[bench]'`). How it is measured: harness.py. Run nothing else meanwhile.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import SIDES, Case, asked, build, in_child, peaks, ratios, save, step
from plots import draw
from step import line

# keep_eos is not the paper's.
SIZES = {
    "2 x 512": Case(warm=True, block={"keep_eos": False}),
    "1 x 2048": Case(batch=1, length=2048, warm=True, block={"keep_eos": False}),
}
RIVALS: dict[str, dict[str, Any]] = {
    "authors": {"plugins": ["rival_trainers.Authors"], "attn_implementation": "eager"},
    "RHO-1": {"plugins": ["rival_trainers.Rho1"]},
}
STEPS_BEFORE, COMPARED_BATCHES = 3, 2


def yamls(case: Case, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the YAML of every side."""
    return {side: case.yaml(side, folder) | RIVALS.get(side, {}) for side in (*SIDES, *RIVALS)}


def measure(size: str, case: Case, pairs: int) -> dict[str, dict[str, Any]]:
    """Return a row for every side but the plain one."""
    with tempfile.TemporaryDirectory() as name:
        configs = yamls(case, Path(name))
        in_child("harness", "fill_cache", configs["plugin"])
        same = in_child("rivals", "same_tokens", configs["plugin"], configs["authors"])
        memory = peaks(configs)
        seconds = in_child("harness", "time_pairs", configs, pairs)
    rows = {
        f"{size}, {side}": {"size": size, "side": side, **ratios(seconds, memory, side)} for side in list(configs)[1:]
    }
    rows[f"{size}, authors"]["same_tokens"] = same
    return rows


def same_tokens(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the share of the tokens that the plugin keeps which the authors' way keeps too, with the same weights.

    Args:
        ours: configuration of the plugin's side.
        theirs: configuration of the authors'.
    """
    import torch

    plugin, batches = build(ours)
    authors, _ = build(theirs)
    # Until weights have changed, REL is zero.
    for _ in range(STEPS_BEFORE):
        step(plugin, next(batches))
    trained = dict(plugin.model.named_parameters())
    with torch.no_grad():
        for name, parameter in authors.model.named_parameters():
            parameter.copy_(trained[name])
        both = kept = 0
        for _ in range(COMPARED_BATCHES):
            batch = next(batches)
            own = kept_by_plugin(plugin, batch)
            both += int((own & authors.select(authors.model, batch)[1]).sum())
            kept += int(own.sum())
    return both / kept


def kept_by_plugin(trainer: Any, batch: Any) -> Any:
    """Return the tokens that the plugin keeps, bool [B, S]."""
    import torch

    scored = trainer.sstoken.selection.begin(trainer.model, batch, trainer.sstoken.phase_now)
    with scored.observed():
        outputs = trainer.model(**{key: value for key, value in batch.items() if key != "labels"})
    scored.loss(outputs)
    kept = torch.zeros_like(batch["labels"], dtype=torch.bool)
    kept.view(-1)[scored.layout.position[scored.kept]] = True
    return kept


def main() -> None:
    """Run the benchmark and print a table."""
    options = asked(__doc__, SIZES, 7)
    for size in options.only:
        rows = measure(size, SIZES[size], options.pairs)
        file = save("rivals", rows)
        for name, figures in rows.items():
            same = f"   same tokens as the plugin {figures['same_tokens']:.4f}" if "same_tokens" in figures else ""
            print(f"{name:42} {line(figures)}{same}", flush=True)
    print(f"Written: {file}")
    draw("rivals")


if __name__ == "__main__":
    main()
