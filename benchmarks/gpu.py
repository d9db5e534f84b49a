"""Cost of the plugin on a GPU: time and peak memory of a step against plain training, and of the parts of a step.

    python benchmarks/gpu.py [--minutes 8.5] [--attention flash_attention_2] [--only NAME ...]
    python benchmarks/gpu.py --device cpu --tiny        # tries the command itself; its figures mean nothing

Random bfloat16 weights in the shapes of real models (gpu_models.py), so that nothing is downloaded; needs torch,
transformers and this folder's repository, neither Axolotl nor PEFT, and for QLoRA bitsandbytes. Both sides run on one
model and the same batches, in turn, with the optimizer step: plain is the loss that transformers computes (all logits),
the other one is the plugin, the lines of sstoken_plugin/engine/step.py with the counts of its metrics, or what a user
could pick instead (rival_selections.py): the authors' way, RHO-1's. Gradient checkpointing is on. LoRA is r 16 on all
linear layers in float32. Cases are in order of importance; one that fits neither the time left nor the memory, or whose
package is not there, says so. Beside a measured ratio stands what cost_model.py predicts for the device. Writes
outputs/benchmarks/gpu.json. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from cost_model import ARCHITECTURES, DEVICES, Architecture, Method, Setting, Side, time_ratio
from gpu_models import LoRAOff, random_model
from harness import SIDES, WARMUP_STEPS, save, spread
from part_clock import part_shares
from rival_selections import kept_by_authors, kept_by_rho1, token_losses
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.modes import without_trace
from sstoken_plugin.engine.step import Phase, ScoredStep, TokenSelection
from sstoken_plugin.history.base import History, Untrained
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.history.store import LossStore
from sstoken_plugin.history.weights import KeptWeights, MovingAverage
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.training.metrics import Totals, counts

BATCHES = 3
PHASES = {"random": Phase("random", gamma=0.0, ratio=0.6)}
PHASE = Phase("sstoken", gamma=0.5, ratio=0.6)
TINY = {
    "llama-3.2-3b": Architecture(2, 64, 4, 2, 16, 96, 320, tied=True),
    "qwen2.5-7b": Architecture(2, 64, 4, 2, 16, 96, 320, tied=False, qkv_bias=True),
    "llama-3.2-1b": Architecture(2, 64, 4, 2, 16, 96, 320, tied=True),
}
TINY_LENGTHS = 32


@dataclass(frozen=True)
class Case:
    """What is measured on rows of random tokens.

    Attributes:
        side: beside plain: one of cost_model.py, or a control selector, or a rival.
        kind: `step`, or `parts` of a warm step, or `scoring`, the history's pass against a bare one.
        batch: rows of a micro-batch.
        attention: implementation, by transformers' name; None for that of the command line.
    """

    model: str = "llama-3.2-3b"
    method: Method = "lora"
    length: int = 2048
    prompt_share: float = 1 / 3
    side: Side | Literal["random", "authors", "RHO-1"] = "warm"
    kind: str = "step"
    batch: int = 1
    attention: str | None = None

    @property
    def name(self) -> str:
        """What it is called in the results."""
        kind = self.side if self.kind == "step" else self.kind
        method = self.method if self.attention is None else f"{self.method}, {self.attention}"
        size = f"{self.batch} x {self.length}"
        return f"{self.model}, {method}, {size}, prompt share {self.prompt_share:.2g}: {kind}"

    def setting(self, shape: Architecture) -> Setting:
        """Return what the cost model needs."""
        return Setting(shape, self.method, batch=self.batch, length=self.length, prompt_share=self.prompt_share)


FLASH = "flash_attention_2"
# In order of importance. Cases of one model follow each other, for it is built anew for others.
CASES = [
    Case(),
    Case(side="history"),
    Case(side="random"),
    Case(batch=4),
    Case(batch=4, side="history"),
    Case(side="RHO-1"),
    Case(side="authors"),
    Case(length=8192),
    Case(kind="parts"),
    Case(prompt_share=0.8),
    Case(kind="scoring"),
    Case(side="ema"),
    Case(length=8192, prompt_share=0.8),
    Case("llama-3.2-1b"),
    Case("llama-3.2-1b", side="history"),
    Case("llama-3.2-1b", side="random"),
    Case("llama-3.2-1b", batch=4),
    Case("llama-3.2-1b", batch=4, side="history"),
    Case("llama-3.2-1b", side="RHO-1"),
    Case("llama-3.2-1b", side="authors"),
    Case(method="qlora"),
    Case(method="qlora", side="history"),
    Case(method="qlora", batch=4),
    Case(method="qlora", batch=4, side="history"),
    Case(attention=FLASH),
    Case(attention=FLASH, side="history"),
    Case("llama-3.2-1b", "full"),
    Case("llama-3.2-1b", "full", side="history"),
    Case("qwen2.5-7b"),
    Case("qwen2.5-7b", side="history"),
    Case("qwen2.5-7b", length=8192),
]


class SkippedError(Exception):
    """A case cannot be measured; the text says why."""


class Bench:
    """A model with its optimizer on a device.

    Args:
        shape: of the model.
        method: what trains.
        device: where.
        attention: implementation, by transformers' name.

    Raises:
        SkippedError: a package is not there.
    """

    def __init__(self, shape: Architecture, method: Method, device: torch.device, attention: str):
        self.device, self.shape, self.method, self.attention = device, shape, method, attention
        if attention == FLASH and not is_flash_attn_2_available():
            raise SkippedError("flash-attn is not installed, or there is no GPU for it")
        try:
            self.model = random_model(shape, method, device, attention)
        except ImportError as error:
            raise SkippedError(str(error).partition("\n")[0]) from None
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        self.totals = Totals()

    def history(self, side: str) -> History:
        """Return the history of a side."""
        if side == "ema":
            return MovingAverage(self.model, 0.99)
        if self.method != "full":
            return LoRAOff()
        return KeptWeights(self.model, "the model before training") if side == "history" else Untrained()

    def batches(self, case: Case) -> list[dict[str, Tensor]]:
        """Return batches of random tokens."""
        found = []
        for _ in range(BATCHES):
            tokens = torch.randint(self.shape.vocabulary, (case.batch, case.length), device=self.device)
            labels = tokens.clone()
            labels[:, : int(case.length * case.prompt_share)] = -100
            found.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
        return found

    def selection(self, losses: HistoryLosses) -> TokenSelection:
        """Return what the plugin's side needs, with the settings' defaults."""
        return TokenSelection(SSTokenConfig(), PromptAttention.of(self.model, -1), losses, [self.shape.vocabulary - 1])

    def plain_step(self, batch: dict[str, Tensor]) -> None:
        """Run a step as transformers does."""
        self.model(**batch, use_cache=False).loss.backward()
        self.update()

    def plugin_step(self, batch: dict[str, Tensor], selection: TokenSelection, phase: Phase = PHASE) -> None:
        """Run a step as the plugin does."""
        scored = selection.begin(self.model, batch, phase, only_needed=True)
        with scored.observed():
            outputs = self.model(**without_labels(batch), use_cache=False)
        loss = scored.loss(outputs)
        # Else the logits that plain training drops here would stay for the backward pass.
        del outputs
        loss.backward()
        self.count(scored)
        self.update()
        if selection.history is not None and selection.history.history is not None:
            selection.history.history.after_step(self.model, 1)

    def authors_step(self, batch: dict[str, Tensor], past: Tensor) -> None:
        """Run a step as ssToken's authors do: attention matrices of all layers, all logits.

        Args:
            batch: as in `batches`.
            past: losses of the history, float32 [B, S], computed ahead.
        """
        labels = batch["labels"]
        self.model.set_attn_implementation("eager")
        try:
            outputs = self.model(**without_labels(batch), use_cache=False, output_attentions=True)
            nll = token_losses(outputs.logits, labels)
            kept = kept_by_authors(nll, outputs.attentions[-1], past, labels, [labels.shape[1]] * len(labels))
            del outputs
            # Checkpointed layers run once more.
            nll[kept].mean().backward()
        finally:
            self.model.set_attn_implementation(self.attention)
        self.update()

    def rho1_step(self, batch: dict[str, Tensor], reference: Any) -> None:
        """Run a step as RHO-1 does: a second model in memory, which runs in every step."""
        with torch.no_grad():
            past = token_losses(reference(**without_labels(batch), use_cache=False).logits, batch["labels"])
        nll = token_losses(self.model(**without_labels(batch), use_cache=False).logits, batch["labels"])
        nll[kept_by_rho1(nll, past, batch["labels"])].mean().backward()
        self.update()

    def count(self, scored: ScoredStep) -> None:
        """Count for the metrics."""
        self.totals.add(counts(scored))

    def update(self) -> None:
        """Run the optimizer."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, work: Callable[[], Any]) -> float:
        """Return the seconds of a call, to the end of what it started on the device."""
        synchronise(self.device)
        start = time.perf_counter()
        work()
        synchronise(self.device)
        return time.perf_counter() - start


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch without its labels."""
    return {key: value for key, value in batch.items() if key != "labels"}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(bench: Bench, case: Case, pairs: int, deadline: float) -> dict[str, Any]:
    """Return the figures of a case."""
    batches = bench.batches(case)
    if case.side == "authors":
        return paired(bench, authors_sides(bench, batches), batches, pairs, deadline)
    if case.side == "RHO-1":
        return beside_reference(bench, batches, pairs, deadline)
    history = bench.history(case.side)
    if case.kind == "scoring":
        return paired(bench, scoring_sides(bench, history), batches, pairs, deadline)
    with tempfile.TemporaryDirectory() as folder:
        losses = HistoryLosses(history)
        if case.side == "warm":
            losses = filled(bench, history, batches, Path(folder))
        selection = bench.selection(losses)
        phase = PHASES.get(case.side, PHASE)
        try:
            if case.kind == "parts":
                return parts(bench, selection, batches, pairs, deadline)
            sides = {"plain": bench.plain_step, "plugin": lambda batch: bench.plugin_step(batch, selection, phase)}
            return paired(bench, sides, batches, pairs, deadline, history.memory)
        finally:
            if losses.store is not None:
                losses.store.close()


def filled(bench: Bench, history: History, batches: list[dict[str, Tensor]], folder: Path) -> HistoryLosses:
    """Return the history's losses on batches, kept in a store, and no history beside it."""
    store = LossStore(folder, b"benchmark")
    losses = HistoryLosses(history, store)
    for batch in batches:
        losses.of(bench.model, batch, BatchLayout.of(batch))
    return HistoryLosses(None, store)


def scoring_sides(bench: Bench, history: History) -> dict[str, Callable[[dict[str, Tensor]], None]]:
    """Return the history's forward pass, bare (all logits) and as the plugin scores with it."""
    losses = HistoryLosses(history)

    def plain(batch: dict[str, Tensor]) -> None:
        with without_trace(bench.model), history.active(bench.model):
            bench.model(**without_labels(batch), use_cache=False)

    return {"plain": plain, "plugin": lambda batch: losses.of(bench.model, batch, BatchLayout.of(batch)) and None}


def authors_sides(bench: Bench, batches: list[dict[str, Tensor]]) -> dict[str, Callable[[dict[str, Tensor]], None]]:
    """Return a plain step and one of the authors', whose losses of the history are computed here."""
    past = {}
    for batch in batches:
        with torch.no_grad(), LoRAOff().active(bench.model):
            logits = bench.model(**without_labels(batch), use_cache=False).logits
            past[id(batch)] = token_losses(logits, batch["labels"])
        del logits
    return {"plain": bench.plain_step, "plugin": lambda batch: bench.authors_step(batch, past[id(batch)])}


def beside_reference(bench: Bench, batches: list[dict[str, Tensor]], pairs: int, deadline: float) -> dict[str, Any]:
    """Measure RHO-1's step, whose second model is of the same shape."""
    reference = random_model(bench.shape, "full", bench.device, bench.attention).eval().requires_grad_(False)
    size = sum(parameter.numel() * parameter.element_size() for parameter in reference.parameters())
    sides = {"plain": bench.plain_step, "plugin": lambda batch: bench.rho1_step(batch, reference)}
    return paired(bench, sides, batches, pairs, deadline, size)


def paired(
    bench: Bench,
    sides: dict[str, Callable[[dict[str, Tensor]], None]],
    batches: list[dict[str, Tensor]],
    pairs: int,
    deadline: float,
    second_weights: int = 0,
) -> dict[str, Any]:
    """Return seconds, peak memory and ratios of calls of both sides, in turn after a warm-up.

    Args:
        bench: the model.
        sides: what each side does with a batch.
        batches: taken in turn.
        pairs: that count.
        deadline: see `refuse_if_late`.
        second_weights: bytes that lie in memory for the plugin's side alone.
    """
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    peak = dict.fromkeys(SIDES, 0)
    source = itertools.cycle(batches)
    for index in range(WARMUP_STEPS + pairs):
        batch = next(source)
        taken = {}
        for side in SIDES:
            with naming(f"the {side} side"):
                taken[side], used = watched(bench, lambda side=side, batch=batch: sides[side](batch))  # type: ignore[misc]
            peak[side] = max(peak[side], used)
        if index >= WARMUP_STEPS:
            for side in SIDES:
                seconds[side].append(taken[side])
        elif index == WARMUP_STEPS - 1:
            refuse_if_late(sum(taken.values()) * pairs, deadline)
    each = [ours / plain for plain, ours in zip(seconds["plain"], seconds["plugin"], strict=True)]
    row: dict[str, Any] = {"seconds": seconds, "time_ratio": spread(each)}
    if peak["plain"]:
        peak["plain"] -= second_weights
        row |= {"peak_bytes": peak, "memory_ratio": peak["plugin"] / peak["plain"]}
    return row


def parts(
    bench: Bench, selection: TokenSelection, batches: list[dict[str, Tensor]], steps: int, deadline: float
) -> dict[str, Any]:
    """Return the share of the probe and of all bookkeeping in the time of each step, as benchmarks/step.py."""

    def run() -> Iterator[float]:
        source = itertools.cycle(batches)
        for index in range(WARMUP_STEPS + steps):
            batch = next(source)
            with naming("the plugin side"):
                seconds = bench.timed(lambda: bench.plugin_step(batch, selection))  # noqa: B023
            yield seconds
            if index == WARMUP_STEPS - 1:
                refuse_if_late(seconds * steps, deadline)

    return part_shares(run(), bench.timed, [(Bench, "count", "bookkeeping")])


def watched(bench: Bench, work: Callable[[], Any]) -> tuple[float, int]:
    """Return the seconds of a call, and the peak of the device's memory in it; 0 on a CPU."""
    if bench.device.type != "cuda":
        return bench.timed(work), 0
    torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = bench.timed(work)
    return seconds, torch.cuda.max_memory_allocated(bench.device)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn a lack of memory inside the block into a reason."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # Without what it was raised from: that holds the tensors.
        raise SkippedError(f"out of memory on {what}") from error.with_traceback(None)


def refuse_if_late(seconds: float, deadline: float) -> None:
    """Raise where work of some seconds would end after the deadline."""
    left = deadline - time.monotonic()
    if seconds > left:
        raise SkippedError(f"needs {seconds:.0f} s more, {left:.0f} s are left" if left > 0 else "no time is left")


def run(options: argparse.Namespace, cases: list[Case]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure cases, and yield the name and the row of each."""
    deadline = time.monotonic() + 60 * options.minutes
    device = torch.device(options.device)
    shapes = TINY if options.tiny else ARCHITECTURES
    card = describe(device)
    for (model, method, own), group in itertools.groupby(cases, lambda case: (case.model, case.method, case.attention)):
        attention = own or options.attention
        bench: Bench | None = None
        for case in group:
            try:
                refuse_if_late(0, deadline)
                with naming("the model or its history"):
                    bench = bench or Bench(shapes[model], method, device, attention)
                    row = measure(bench, case, options.pairs, deadline)
            except SkippedError as error:
                row = {"skipped": str(error)}
            row |= {"card": card, "attention": attention}
            if "time_ratio" in row:
                row |= prediction(case, shapes[model], card["name"])
            clear(bench)
            yield case.name, row
        # The next model needs the room.
        bench = None
        clear(bench)


def clear(bench: Bench | None) -> None:
    """Give back memory that a case has left, after a lack of it too."""
    if bench is not None:
        bench.optimizer.zero_grad()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(device: torch.device) -> dict[str, str]:
    """Return the device's name, and its driver."""
    if device.type != "cuda":
        return {"name": device.type}
    return {"name": torch.cuda.get_device_name(device), "driver": driver(), "cuda": torch.version.cuda or "?"}


def driver() -> str:
    """Return the version of the GPU's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return "?"
    return subprocess.run(query, stdout=subprocess.PIPE, text=True, check=False).stdout.partition("\n")[0]


def prediction(case: Case, shape: Architecture, card: str) -> dict[str, float]:
    """Return the time ratio of the cost model, where it knows the card."""
    rates = next((rates for name, rates in DEVICES.items() if name.split("-")[-1] in card.lower()), None)
    if rates is None or case.kind != "step" or case.side not in get_args(Side):
        return {}
    return {"predicted_time_ratio": time_ratio(case.setting(shape), cast(Side, case.side), rates)}


def line(row: dict[str, Any]) -> str:
    """Return a row in words."""
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    words = []
    for key in ("time_ratio", "probe", "bookkeeping"):
        if key in row:
            figures = row[key]
            words.append(f"{key.split('_')[0]} {figures['median']:.3f} ({figures['min']:.3f} to {figures['max']:.3f})")
    if "predicted_time_ratio" in row:
        words.append(f"predicted {row['predicted_time_ratio']:.3f}")
    if "memory_ratio" in row:
        words.append(f"memory {row['memory_ratio']:.3f} of {row['peak_bytes']['plain'] / 2**30:.2f} GiB")
    return "   ".join(words)


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--attention", default="sdpa", metavar="IMPLEMENTATION", help="of transformers")
    parser.add_argument("--minutes", type=float, default=8.5, help="cases that would end later are left out")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="shapes of a few thousand parameters and short rows")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cases whose names hold one of these")
    parser.add_argument(
        "--out", default="gpu", metavar="NAME", help="of the results: outputs/benchmarks/NAME.json, or a path"
    )
    options = parser.parse_args()
    cases = [replace(case, length=case.length // TINY_LENGTHS) for case in CASES] if options.tiny else CASES
    cases = [case for case in cases if not options.only or any(text in case.name for text in options.only)]
    file: Path | None = None
    for name, row in run(options, cases):
        # One by one: a machine may be taken away.
        file = save(options.out, {name: row})
        print(f"{name:68} {line(row)}", flush=True)
    print(f"Written: {file}")


if __name__ == "__main__":
    main()
