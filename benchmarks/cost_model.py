"""What a training step must cost, from shapes alone: FLOPs, bytes moved, peak memory, and the ratios to a plain step.

    python benchmarks/cost_model.py [--device rtx-4090]          # table of large models, Markdown
    python benchmarks/cost_model.py --cards 12 24                # what fits on cards of so many GiB

cost_check.py compares it with what step.py has measured.

Sides of a case:
  plain     transformers' own loss: logits at all positions, cross-entropy in float32
  response  the same on response positions only, for reference
  warm      the plugin, history losses cached
  history   the plugin, history computed in the step by the model without adapter, or by a copy (full fine-tuning)
  ema       the same, by the trained weights swapped for their moving average

Time is a roofline: each group of work takes its FLOPs at the device's peak or its bytes at the device's bandwidth,
whichever is longer, and groups follow each other. Real kernels reach neither; ratios suffer less from that than times.

Assumed: a matrix product of n rows is 2n FLOPs a weight; causal attention is half its matrix, its backward pass 2.5
times the forward; checkpointing runs each block once more. Element-wise operations are unfused, as in eager PyTorch.
LoRA is float32 on all linear layers with AdamW in float32. QLoRA has NF4 blocks, the rest in bfloat16. Full
fine-tuning has weights and gradients in bfloat16 and AdamW moments in float32. A plain loss peaks at three float32
tensors over the vocabulary: log-softmax, the gradient that reaches it, and the one that leaves it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

from sstoken_plugin.engine.linear_nll import ELEMENTS, HELD_BYTES, LEAST_ROWS

Method = Literal["lora", "qlora", "full"]
Side = Literal["plain", "response", "warm", "history", "ema"]
FLOAT32 = 4
# A weight, with its share of scales that are quantised again.
NF4_BYTES = 0.516
# AdamW: two moments in float32.
MOMENT_BYTES = 8
GIB = 2**30
# Of a card, for CUDA itself, a display and gaps between tensors: a guess.
SPARE_GIB = 2


@dataclass(frozen=True)
class Architecture:
    """Shapes of a decoder with gated MLPs and grouped attention heads, as Llama and Qwen2."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of a block."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.width, query), (self.width, key), (self.width, key), (query, self.width)]
        return [*attention, (self.width, self.mlp), (self.width, self.mlp), (self.mlp, self.width)]

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers of the blocks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.width * self.vocabulary

    @property
    def parameters(self) -> int:
        """All parameters."""
        bias = sum(outputs for _, outputs in self.linears[:3]) if self.qkv_bias else 0
        other = self.layers * (bias + 2 * self.width) + self.width
        return self.linear_weights + self.head_weights * (1 if self.tied else 2) + other

    def adapter(self, rank: int) -> int:
        """Return the weights of LoRA on all linear layers of the blocks."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears)


ARCHITECTURES = {
    "smollm2-135m": Architecture(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "llama-3.2-1b": Architecture(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "llama-3.2-3b": Architecture(28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "llama-3.1-8b": Architecture(32, 4096, 32, 8, 128, 14336, 128256, tied=False),
    "qwen2.5-7b": Architecture(28, 3584, 28, 4, 128, 18944, 152064, tied=False, qkv_bias=True),
    "qwen2.5-14b": Architecture(48, 5120, 40, 8, 128, 13824, 152064, tied=False, qkv_bias=True),
}


@dataclass(frozen=True)
class Setting:
    """What is trained, on what.

    Attributes:
        element: bytes of a weight and of an activation.
        masked: the attention kernel works through the whole matrix, as sdpa does with a mask for packed rows.
        rank: of the adapter.
    """

    architecture: Architecture
    method: Method = "lora"
    batch: int = 1
    length: int = 2048
    prompt_share: float = 1 / 3
    ratio: float = 0.6
    checkpointing: bool = True
    element: int = 2
    masked: bool = False
    rank: int = 16

    @property
    def tokens(self) -> int:
        """Positions of a step."""
        return self.batch * self.length

    @property
    def response(self) -> int:
        """R, response tokens of a step."""
        return self.batch * (self.length - int(self.length * self.prompt_share))

    @property
    def kept(self) -> int:
        """Response tokens trained on."""
        return math.ceil(self.ratio * self.response)

    @property
    def trained_head(self) -> bool:
        """Whether the output head takes a gradient."""
        return self.method == "full"

    @property
    def adapter(self) -> int:
        """Weights of the adapter."""
        return 0 if self.method == "full" else self.architecture.adapter(self.rank)

    @property
    def chunk(self) -> int:
        """Rows of logits that the plugin works on at a time."""
        return min(self.response, max(LEAST_ROWS, ELEMENTS // self.architecture.vocabulary))

    @property
    def held(self) -> int:
        """Response tokens whose logits wait for the backward pass, so that they are computed once."""
        return min(self.response, HELD_BYTES // (self.architecture.vocabulary * self.element)) * self.trained_head


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes moved."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.bytes * times)


@dataclass(frozen=True)
class Device:
    """Peak rates: FLOP/s of dense matrix products, bytes/s of memory.

    Attributes:
        loss_bandwidth: of softmax over the vocabulary, which on a CPU writes memory that is new; None for the same.
    """

    flops: float
    bandwidth: float
    loss_bandwidth: float | None = None

    def seconds(self, group: str, work: Work) -> float:
        """Return the roofline time of a group of work."""
        loss = self.loss_bandwidth if group == "cross-entropy" else None
        return max(work.flops / self.flops, work.bytes / (loss or self.bandwidth))


# Makers' figures, dense bfloat16 with float32 sums.
DEVICES = {"rtx-4090": Device(165e12, 1008e9), "h100": Device(989e12, 3350e9), "h200": Device(989e12, 4800e9)}


def has_history_pass(side: Side) -> bool:
    """Tell whether a side runs the history in the step."""
    return side in ("history", "ema")


def is_plugin(side: Side) -> bool:
    """Tell whether a side selects."""
    return side in ("warm", "history", "ema")


def attention(setting: Setting) -> float:
    """Return the FLOPs of attention in one layer, forward: queries times keys, probabilities times values."""
    shape = setting.architecture
    pairs = setting.length**2 / (1 if setting.masked else 2)
    return 4 * setting.batch * pairs * shape.heads * shape.head_dim


def passes(setting: Setting, side: Side) -> int:
    """Return how often the weights of the blocks are read: forward, again where recomputed, backward, history."""
    return 2 + setting.checkpointing + has_history_pass(side)


def blocks(setting: Setting, side: Side) -> Work:
    """Return the matrix products and the attention of all blocks."""
    shape, tokens = setting.architecture, setting.tokens
    linear, adapter = 2 * tokens * shape.linear_weights, 2 * tokens * setting.adapter
    once = linear + adapter + shape.layers * attention(setting)
    # Frozen weights need the gradient of their input alone.
    backward = linear * (2 if setting.method == "full" else 1) + 2 * adapter + 2.5 * shape.layers * attention(setting)
    flops = once * (1 + setting.checkpointing) + backward
    if has_history_pass(side):
        flops += once - (adapter if side == "history" else 0)
    if is_plugin(side):
        # The probe: one more call of one layer's attention.
        flops += attention(setting)
    gradients = setting.method == "full"
    return Work(flops, shape.linear_weights * setting.element * (passes(setting, side) + gradients))


def elementwise(setting: Setting, side: Side) -> Work:
    """Return the element-wise traffic of all blocks: norms, rotation, gate, residual sums, sums with the adapter."""
    shape, size = setting.architecture, setting.element
    # To float32 and back (in float32 neither is one), square, mean, scale, weight.
    norm = 5 * FLOAT32 + 3 * size + (2 * FLOAT32 + 2 * size if size != FLOAT32 else 0)
    rotated = (shape.heads + shape.kv_heads) * shape.head_dim
    base = 2 * norm * shape.width + size * (9 * rotated + 5 * shape.mlp + 6 * shape.width)
    sums = 5 * size * sum(outputs for _, outputs in shape.linears) if setting.adapter else 0
    # A backward pass reads and writes about twice as much.
    each = (base + sums) * (3 + setting.checkpointing)
    if has_history_pass(side):
        each += base + (sums if side == "ema" else 0)
    return Work(bytes=each * shape.layers * setting.tokens)


def head_rows(setting: Setting, side: Side) -> int:
    """Return how many rows the output head multiplies, forward and for both gradients, each counted as one row."""
    if not is_plugin(side):
        rows = setting.tokens if side == "plain" else setting.response
        return rows * (3 if setting.trained_head else 2)
    history = setting.response if has_history_pass(side) else 0
    if setting.trained_head:
        again = round(setting.kept * (1 - setting.held / setting.response))
        return setting.response + 2 * setting.kept + again + history
    return 2 * setting.response + history


def head(setting: Setting, side: Side) -> Work:
    """Return the matrix products of the output head; in chunks, its weights are read once a chunk and product."""
    shape, size = setting.architecture, setting.element
    rows = head_rows(setting, side)
    products = math.ceil(rows / setting.chunk) if is_plugin(side) else (3 if setting.trained_head else 2)
    return Work(2 * rows * shape.head_weights, products * shape.head_weights * size + rows * shape.vocabulary * size)


def cross_entropy(setting: Setting, side: Side) -> Work:
    """Return the traffic of softmax, loss and their gradient over the vocabulary."""
    size = setting.element
    copy = FLOAT32 + size if size != FLOAT32 else 0
    if not is_plugin(side):
        # Log-softmax of a copy; backward: zeros, their gradient through log-softmax, and the cast of it.
        each = copy + 2 * FLOAT32 + 4 * FLOAT32 + copy
        rows = float(setting.tokens if side == "plain" else setting.response)
        return Work(bytes=each * rows * setting.architecture.vocabulary)
    # Log-softmax of logits as they are; its change in place, and the cast.
    softmax, gradient = size + FLOAT32, 2 * FLOAT32 + copy
    if setting.trained_head:
        each_token = setting.response * softmax + setting.kept * (softmax + gradient)
    else:
        each_token = setting.response * (softmax + gradient)
    if has_history_pass(side):
        each_token += setting.response * softmax
    return Work(bytes=float(each_token * setting.architecture.vocabulary))


def optimizer(setting: Setting, side: Side) -> Work:
    """Return the traffic of AdamW, and of the swaps and the update of a moving average."""
    shape = setting.architecture
    trained, size = (setting.adapter, FLOAT32) if setting.adapter else (shape.parameters, setting.element)
    each = 3 * size + 2 * MOMENT_BYTES
    if side == "ema":
        # Two swaps of three copies each; one weighted sum.
        each += 15 * size
    return Work(bytes=trained * each)


def dequantisation(setting: Setting, side: Side) -> Work:
    """Return the traffic of NF4 weights that become bfloat16 for every pass."""
    if setting.method != "qlora":
        return Work()
    return Work(bytes=setting.architecture.linear_weights * (NF4_BYTES + setting.element) * passes(setting, side))


GROUPS: dict[str, Callable[[Setting, Side], Work]] = {
    "blocks": blocks,
    "element-wise": elementwise,
    "head": head,
    "cross-entropy": cross_entropy,
    "optimizer": optimizer,
    "dequantisation": dequantisation,
}


def total(setting: Setting, side: Side) -> Work:
    """Return all work of a step."""
    return sum((group(setting, side) for group in GROUPS.values()), Work())


def seconds(setting: Setting, side: Side, device: Device) -> float:
    """Return the roofline time of a step."""
    return sum(device.seconds(name, group(setting, side)) for name, group in GROUPS.items())


def time_ratio(setting: Setting, side: Side, device: Device) -> float:
    """Return the roofline time of a step over that of a plain one."""
    return seconds(setting, side, device) / seconds(setting, "plain", device)


def flops_ratio(setting: Setting, side: Side) -> float:
    """Return the FLOPs of a step over those of a plain one."""
    return total(setting, side).flops / total(setting, "plain").flops


def lasting_bytes(setting: Setting, side: Side) -> float:
    """Return what lies in memory between steps: weights, adapter, moments, second weights of the history."""
    shape, size = setting.architecture, setting.element
    weights: float = shape.parameters * size
    if setting.method == "qlora":
        weights += shape.linear_weights * (NF4_BYTES - size)
    trained = setting.adapter or shape.parameters
    second = 0
    if side == "ema" or (side == "history" and setting.method == "full"):
        second = trained * (FLOAT32 if setting.adapter else size)
    return weights + setting.adapter * FLOAT32 + trained * MOMENT_BYTES + second


def block_activations(setting: Setting) -> float:
    """Return what one block keeps for its backward pass."""
    shape, size = setting.architecture, setting.element
    # Norms keep their input in float32; products their inputs (and, trained, norms their output); attention all four.
    norms = 2 * shape.width * (FLOAT32 + size + (size if setting.method == "full" else 0))
    heads = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return setting.tokens * (norms + size * (heads + 4 * shape.mlp))


def loss_bytes(setting: Setting, side: Side) -> float:
    """Return what the loss takes at its peak, over what the blocks keep."""
    shape, size = setting.architecture, setting.element
    gradient = shape.head_weights * size if setting.trained_head else 0
    if is_plugin(side):
        # Logits and softmax of one chunk; logits that wait. Hidden states of response rows, and their gradient.
        rows = (setting.chunk * (FLOAT32 + size) + setting.held * size) * shape.vocabulary
        return rows + 2 * setting.response * shape.width * size + gradient
    rows = setting.tokens if side == "plain" else setting.response
    return 3 * FLOAT32 * rows * shape.vocabulary + gradient


def peak_bytes(setting: Setting, side: Side) -> float:
    """Return the peak memory of a step: at the loss, or at the end of the backward pass with every gradient there."""
    shape = setting.architecture
    one = block_activations(setting)
    kept = shape.layers * (setting.tokens * shape.width * setting.element if setting.checkpointing else one)
    gradients = setting.adapter * FLOAT32 or shape.parameters * setting.element
    # The block under way has its activations and their gradients.
    return lasting_bytes(setting, side) + max(kept + loss_bytes(setting, side), gradients + 2 * one, kept + 2 * one)


def table(device: Device, name: str) -> str:
    """Return the table of large models."""
    lines = [
        f"Roofline of {name}; checkpointing, prompt share 1/3, ratio 0.6, one sequence a step. Ratios to plain.",
        "",
        "| model | tokens | training | plain TFLOP | response head: time | warm: FLOPs | warm: time "
        "| history in the step: FLOPs | history in the step: time | plain GiB | warm GiB | history GiB |",
        "| --- " * 12 + "|",
    ]
    methods: tuple[Method, ...] = ("lora", "qlora", "full")
    for model in ("llama-3.2-3b", "qwen2.5-7b"):
        for length in (2048, 8192):
            for method in methods:
                setting = Setting(ARCHITECTURES[model], method, length=length)
                lines.append("| " + " | ".join([model, str(length), method, *figures(setting, device)]) + " |")
    return "\n".join(lines)


def figures(setting: Setting, device: Device) -> list[str]:
    """Return the figures of a row of the table."""
    found = [f"{total(setting, 'plain').flops / 1e12:.1f}", f"{time_ratio(setting, 'response', device):.3f}"]
    for side in ("warm", "history"):
        found += [f"{flops_ratio(setting, side):.3f}", f"{time_ratio(setting, side, device):.3f}"]
    return found + [f"{peak_bytes(setting, side) / GIB:.1f}" for side in ("plain", "warm", "history")]


def rows_that_fit(setting: Setting, side: Side, gib: float) -> int:
    """Return the most rows in a micro-batch whose peak memory is not above a limit in GiB."""
    peaks = {rows: peak_bytes(replace(setting, batch=rows), side) / GIB for rows in range(1, 65)}
    return max((rows for rows, peak in peaks.items() if peak <= gib), default=0)


def cards_table(cards: list[int], rank: int = 16) -> str:
    """Return the table of what fits on cards.

    Args:
        cards: their memory in GiB.
        rank: of the adapter.
    """
    lines = [
        "| model | training | GiB at 1 row | GiB at 4 rows | "
        + " | ".join(f"{card} GB: rows" for card in cards)
        + " |",
        "| --- " * (4 + len(cards)) + "|",
    ]
    methods: tuple[Method, ...] = ("qlora", "lora")
    sides: tuple[Side, ...] = ("plain", "history")
    for model in ("llama-3.2-1b", "llama-3.2-3b", "qwen2.5-7b", "llama-3.1-8b", "qwen2.5-14b"):
        for setting in (Setting(ARCHITECTURES[model], method, rank=rank) for method in methods):
            batches = [replace(setting, batch=rows) for rows in (1, 4)]
            peaks = [[f"{peak_bytes(batch, side) / GIB:.1f}" for side in sides] for batch in batches]
            fits = [[str(rows_that_fit(setting, side, card - SPARE_GIB)) for side in sides] for card in cards]
            cells = [model, setting.method, *map(" / ".join, [*peaks, *fits])]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a table of large models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="rtx-4090")
    parser.add_argument("--cards", nargs="+", type=int, metavar="GIB", help="what fits on cards of so many GiB")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter, with --cards")
    options = parser.parse_args()
    if options.cards:
        print(cards_table(options.cards, options.rank))
    else:
        print(table(DEVICES[options.device], options.device))


if __name__ == "__main__":
    main()
