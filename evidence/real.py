"""Make everything of the experiments with real models and data: corrupted data, and the YAML of each experiment.

    python demo/model.py .cache/models/smollm2-135m-instruct
    python -m evidence.gemma .cache/models/gemma-3-270m
    python -m evidence.real --data FOLDER
    python -m sstoken_plugin.experiments .cache/evidence/real/experiments/smollm2-maths-corrupt20.yaml
    python -m evidence.collect .cache/evidence/real/experiments/smollm2-maths-corrupt20.yaml

FOLDER has `instruct_free.jsonl`, `multiturn_tools.jsonl` and `short_answer.jsonl`, a sample a line as
`{"messages": [{"role", "content"}, ...]}`; docs/evidence.md says what they are. Everything follows from seeds. A start
on a GPU and one on a CPU read the same files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evidence.arms import AGAINST, arms
from evidence.corrupt import Sample, corrupted

FOLDER = Path(".cache/evidence/real")
MODELS: dict[str, dict[str, Any]] = {
    "smollm2": {"base_model": ".cache/models/smollm2-135m-instruct", "chat_template": "tokenizer_default"},
    # A pretrained model, which has no template of its own: its sibling's, and the token that ends a turn there.
    "gemma3": {
        "base_model": ".cache/models/gemma-3-270m",
        "chat_template": "gemma3",
        "eot_tokens": ["<end_of_turn>"],
    },
}
LEVELS = (0, 20, 40)
SEEDS = (1, 2, 3)
# Of the clean samples; they are never corrupted.
HELD_OUT_SHARE = 0.15
_DATA_SEED = 3


# In float32, so that a GPU and a CPU do the same.
_TRAINING = {
    "sequence_len": 2048,
    "pad_to_sequence_len": False,
    "dataset_num_proc": 1,
    "val_set_size": 0,
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    # On a CPU these kernels are not there.
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "learning_rate": 5e-4,
    "lr_scheduler": "cosine",
    "warmup_steps": 5,
    "optimizer": "adamw_torch",
    "attn_implementation": "sdpa",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "seed": 42,
}


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        file: its name.
        trained: so many samples, about 40,000 to 65,000 tokens.
        held_out: so many at most.
        untouched: the data set whose held-out samples show what is forgotten.
        answers: most tokens of a greedy answer; None where it would be right by luck alone.
    """

    file: str
    trained: int
    held_out: int
    untouched: str
    answers: int | None = None


SOURCES = {
    "maths": Source("instruct_free.jsonl", 300, 100, "short"),
    "tools": Source("multiturn_tools.jsonl", 120, 45, "maths"),
    "short": Source("short_answer.jsonl", 400, 75, "maths", answers=24),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is asked for on the command line."""
    parser = argparse.ArgumentParser(description="Make the data and the YAMLs of the experiments with real data.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of everything (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the trainings")
    asked = parser.parse_args(arguments)
    write_data(asked.data, asked.out / "data")
    for model in MODELS:
        for name in SOURCES:
            for level in LEVELS:
                found = experiment(asked.out, model, name, level, asked.seeds)
                file = asked.out / "experiments" / f"{model}-{name_of(name, level)}.yaml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    print(f"Written to {asked.out}; the experiments are {asked.out}/experiments/MODEL-DATA-corruptLEVEL.yaml.")


def name_of(source: str, level: int) -> str:
    """Return the name of training data, whose level of corruption is in percent."""
    return f"{source}-corrupt{level:02d}"


def write_data(sources: Path, folder: Path) -> None:
    """Write training data of each level, the same without what was corrupted, and clean held-out data.

    Raises:
        SystemExit: a data set is not there.
    """
    for number, (name, source) in enumerate(SOURCES.items()):
        try:
            lines = (sources / source.file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SystemExit(
                f"--data: {sources / source.file} cannot be read ({error.strerror}); name the folder that holds it."
            ) from error
        samples = [json.loads(line) for line in lines]
        order = np.random.default_rng([_DATA_SEED, number]).permutation(len(samples)).tolist()
        first = round(HELD_OUT_SHARE * len(samples))
        _write(folder / f"{name}-held-out.jsonl", [samples[place] for place in order[:first][: source.held_out]])
        trained = [samples[place] for place in order[first:][: source.trained]]
        for level in LEVELS:
            made, places = corrupted(trained, level / 100, [_DATA_SEED, number])
            _write(folder / f"{name_of(name, level)}.jsonl", made)
            if level:
                kept = [sample for place, sample in enumerate(made) if place not in set(places)]
                _write(folder / f"{name_of(name, level)}-without.jsonl", kept)


def _write(file: Path, samples: Sequence[Sample]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")


def experiment(out: Path, model: str, source: str, level: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the YAML of an experiment, see docs/experiments.md.

    Args:
        out: folder of everything.
        model: one of `MODELS`.
        source: one of `SOURCES`.
        level: percent of the samples whose responses are corrupted.
        seeds: of the trainings.
    """

    def named(file: str) -> list[dict[str, str]]:
        path = str(out / "data" / f"{file}.jsonl")
        # Axolotl takes a path without a slash for the name of a hub's data set; `ds_type` says what the file is.
        return [{"path": path, "ds_type": "json", "type": "chat_template", "field_messages": "messages"}]

    asked, name = SOURCES[source], name_of(source, level)
    held_out = named(f"{source}-held-out")
    evaluations: dict[str, Any] = {
        "held_out": {"kind": "loss", "datasets": held_out},
        "untouched": {"kind": "forgetting", "datasets": named(f"{asked.untouched}-held-out")},
    }
    if asked.answers is not None:
        evaluations["answers"] = {
            "kind": "answers", "datasets": held_out, "max_new_tokens": asked.answers, "batch_size": 25,
        }  # fmt: skip
    without = {"oracle": {"changes": {"datasets": named(f"{name}-without")}}} if level else {}
    return {
        "base": {**MODELS[model], **_TRAINING, "datasets": named(name)},
        "out": str(out / "runs" / f"{model}-{name}"),
        "seeds": list(seeds),
        # Without corruption the oracle would be the plain arm once more.
        "arms": {**arms(str(MODELS[model]["base_model"])), **without},
        "against": list(AGAINST),
        "evaluations": evaluations,
    }


if __name__ == "__main__":
    main()
