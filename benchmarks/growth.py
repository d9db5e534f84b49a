"""How time and memory of a step grow, against plain Axolotl: with tokens, vocabulary, ratio and share of the prompt.

    python benchmarks/growth.py [--only "tokens 256" "prompt 0.5" ...] [--pairs 5]

LoRA in float32 with the cache filled: SmolLM2-135M, but for the vocabulary, where a random Qwen2 of few layers stands
in whose head is as large as that of the real one. No process gives memory back, so that small effects can be seen.
Each point is saved when it is there, in outputs/benchmarks/growth.json, so that a run that is interrupted keeps what it
has; all are drawn at the end (`pip install '.[bench]'`). How it is measured: harness.py. Run nothing else meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness import MODEL, NEVER_FREED, Case, asked, in_child, measure, save, write_random_model
from plots import draw
from step import line


def model_folder(vocabulary: int) -> Path:
    """Return where the model with a vocabulary of this size lies."""
    return MODEL.parent / f"random-qwen2-{vocabulary}"


WARM = Case(warm=True, environment=NEVER_FREED)
ROW = replace(WARM, batch=1)
CASES: dict[str, dict[float, Case]] = {
    "tokens": {tokens: replace(ROW, length=tokens) for tokens in (256, 512, 1024, 2048, 4096)},
    "vocabulary": {size: replace(WARM, model=model_folder(size)) for size in (49152, 151936)},
    "ratio": {ratio: replace(ROW, block={"ratio": ratio}) for ratio in (0.2, 0.4, 0.6, 0.8, 1.0)},
    "prompt": {share: replace(ROW, prompt_share=share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)},
}


def write_model(vocabulary: int) -> None:
    """Write a random Qwen2, as wide as Qwen2.5-0.5B and of fewer layers, with SmolLM2's tokenizer."""
    write_random_model(
        model_folder(vocabulary),
        "qwen2",
        vocab_size=vocabulary,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=4,
        num_attention_heads=14,
        num_key_value_heads=2,
    )


def main() -> None:
    """Run the benchmark and print a table."""
    points = {f"{variable} {value}": (variable, value) for variable, cases in CASES.items() for value in cases}
    options = asked(__doc__, points, 5)
    for name in options.only:
        variable, value = points[name]
        if variable == "vocabulary":
            in_child("growth", "write_model", value)
        row = {"variable": variable, "value": value, **measure(CASES[variable][value], options.pairs)}
        file = save("growth", {name: row})
        print(f"{name:24} {line(row)}", flush=True)
    print(f"Written: {file}")
    draw("growth")


if __name__ == "__main__":
    main()
