"""Make everything of the experiments with real models and data: corrupted data, and the YAML of each experiment.

    python demo/model.py .cache/models/smollm2-135m-instruct
    python -m evidence.gemma .cache/models/gemma-3-270m
    python -m evidence.real --data FOLDER
    axolotl train .cache/evidence/real/references/smollm2-maths.yaml
    python -m sstoken_plugin.experiments .cache/evidence/real/experiments/smollm2-maths-corrupt20.yaml
    python -m evidence.collect .cache/evidence/real/experiments/smollm2-maths-corrupt20.yaml

FOLDER has `instruct_free.jsonl`, `multiturn_tools.jsonl` and `short_answer.jsonl`, a sample a line as
`{"messages": [{"role", "content"}, ...]}`; docs/evidence.md says what they are. Everything follows from seeds. A start
on a GPU and one on a CPU read the same files. The model of RHO-1's rule is trained by Axolotl itself, on clean samples
that no arm sees.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evidence import jsonl
from evidence.arms import AGAINST, LATE_SEEDS, arms, late, named, threshold, with_controls
from evidence.corrupt import corrupted
from sstoken_plugin.axolotl.experiment import write as write_yaml

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
# Of the experiments that confirm what the others chose; no other has these seeds.
CONFIRMATION_SEEDS = (11, 12, 13, 14, 15)
# Of the experiments with the paper's learning rate, a fifth of the others'; no other has these seeds.
PAPER_RATE, PAPER_RATE_SEEDS = 1e-4, (41, 42, 43)
# Of the experiments that confirm the default of `warmup_selector`; no other has these seeds.
WARMUP_SEEDS = (51, 52, 53, 54, 55)
# Of the clean samples; they are never corrupted.
HELD_OUT_SHARE = 0.15
# Of the samples that show what is forgotten.
UNTOUCHED = 30
_DATA_SEED = 3
# Arms of the first model at the highest level alone.
_ONCE = ("dft", "clean-too")


TRAINING: dict[str, Any] = {
    # Weights in float32, arithmetic in bfloat16: on a GPU and on a CPU.
    "plugins": ["evidence.autocast.AutocastPlugin"],
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
        trained: so many samples, 25,000 to 65,000 tokens.
        held_out: so many at most.
        reference: so many that the reference model is trained on.
        untouched: the data set whose held-out samples show what is forgotten.
        answers: most tokens of a greedy answer; None where it would be right by luck alone.
        epochs: of each training.
    """

    file: str
    trained: int
    held_out: int
    reference: int
    untouched: str
    answers: int | None = None
    epochs: int = 1


SOURCES = {
    "maths": Source("instruct_free.jsonl", 300, 100, 300, "short"),
    "tools": Source("multiturn_tools.jsonl", 120, 45, 120, "maths"),
    "short": Source("short_answer.jsonl", 300, 75, 125, "maths", answers=24),
    # Few samples, seen often: what is wrong can be learnt by heart.
    "few": Source("short_answer.jsonl", 75, 75, 125, "maths", answers=24, epochs=4),
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
            write_yaml(reference(asked.out, model, name), asked.out / "references" / f"{model}-{name}.yaml")
            for level in LEVELS:
                file = asked.out / "experiments" / f"{model}-{name_of(name, level)}.yaml"
                found = experiment(asked.out, model, name, level, asked.seeds)
                write_yaml(found, file)
                for kind, other in others(found).items():
                    write_yaml(other, file.with_stem(f"{file.stem}-{kind}"))
    print(
        f"Written to {asked.out}: the experiments are {asked.out}/experiments/MODEL-DATA-corruptLEVEL.yaml, and need "
        f"`axolotl train {asked.out}/references/MODEL-DATA.yaml` first."
    )


def name_of(source: str, level: int) -> str:
    """Return the name of training data, whose level of corruption is in percent."""
    return f"{source}-corrupt{level:02d}"


def write_data(sources: Path, folder: Path) -> None:
    """Write training data of each level, the same without what was corrupted, and clean data that no arm sees.

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
        jsonl.write(folder / f"{name}-held-out.jsonl", [samples[place] for place in order[:first][: source.held_out]])
        others = [samples[place] for place in order[first:]]
        trained = others[: source.trained]
        jsonl.write(folder / f"{name}-reference.jsonl", others[source.trained :][: source.reference])
        for level in LEVELS:
            made, places = corrupted(trained, level / 100, [_DATA_SEED, number])
            jsonl.write(folder / f"{name_of(name, level)}.jsonl", made)
            if level:
                kept = [sample for place, sample in enumerate(made) if place not in set(places)]
                jsonl.write(folder / f"{name_of(name, level)}-without.jsonl", kept)


def reference(out: Path, model: str, source: str) -> dict[str, Any]:
    """Return the YAML of a reference model's training, for Axolotl: as many steps as an arm has, on clean samples.

    Args:
        out: folder of everything.
        model: one of `MODELS`.
        source: one of `SOURCES`.
    """
    return {
        **MODELS[model],
        **TRAINING,
        "datasets": _named(out, f"{source}-reference"),
        "dataset_prepared_path": str(out / "references" / "prepared"),
        "max_steps": SOURCES[source].trained * SOURCES[source].epochs // TRAINING["micro_batch_size"],
        "save_strategy": "no",
        "output_dir": str(_reference_folder(out, model, source)),
    }


def _reference_folder(out: Path, model: str, source: str) -> Path:
    return out / "references" / f"{model}-{source}"


def _named(out: Path, file: str) -> list[dict[str, str]]:
    return jsonl.named(out / "data" / f"{file}.jsonl", "chat_template", field_messages="messages")


def experiment(out: Path, model: str, source: str, level: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the YAML of an experiment, see docs/experiments.md.

    Args:
        out: folder of everything.
        model: one of `MODELS`.
        source: one of `SOURCES`.
        level: percent of the samples whose responses are corrupted.
        seeds: of the trainings.
    """
    asked, name = SOURCES[source], name_of(source, level)
    base = str(MODELS[model]["base_model"])
    every = arms(base, str(_reference_folder(out, model, source)), asked.epochs)
    held_out = _named(out, f"{source}-held-out")
    evaluations: dict[str, Any] = {
        "held_out": {"kind": "loss", "datasets": held_out},
        "untouched": {
            "kind": "forgetting", "datasets": _named(out, f"{asked.untouched}-held-out"), "samples": UNTOUCHED,
        },
    }  # fmt: skip
    if asked.answers is not None:
        evaluations["answers"] = {
            "kind": "answers", "datasets": held_out, "max_new_tokens": asked.answers, "batch_size": 25,
        }  # fmt: skip
    more = {
        # In text there are more tokens to choose from, so that a wrong one is less likely than a wrong digit.
        "threshold-0.001": threshold(0.001),
        # What the samples of the reference model are worth by themselves.
        "clean-too": {"changes": {"datasets": [*_named(out, name), *_named(out, f"{source}-reference")]}},
    }
    # Without corruption the oracle would be the plain arm once more.
    without = {"oracle": {"changes": {"datasets": _named(out, f"{name}-without")}}} if level else {}
    left_out = () if model == next(iter(MODELS)) and level == max(LEVELS) else _ONCE
    return {
        "base": {**MODELS[model], **TRAINING, "num_epochs": asked.epochs, "datasets": _named(out, name)},
        "out": str(out / "runs" / f"{model}-{name}"),
        "seeds": list(seeds),
        "arms": {name: arm for name, arm in {**every, **more, **without}.items() if name not in left_out},
        "against": list(AGAINST),
        "evaluations": evaluations,
    }


@dataclass(frozen=True)
class Other:
    """What an experiment on the same data has of its own: seeds, arms, keys of the base, and what it compares with."""

    seeds: Sequence[int]
    arms: Mapping[str, Mapping[str, Any] | None]
    base: Mapping[str, Any] = field(default_factory=dict)
    against: Sequence[str] = AGAINST


def others(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the YAMLs of the experiments on the same data with other seeds or arms, by what their names end in."""
    kinds = {
        "confirmation": Other(CONFIRMATION_SEEDS, with_controls("threshold-0.01")),
        "late": Other(LATE_SEEDS, late("threshold-0.01")),
        "paper-rate": Other(
            PAPER_RATE_SEEDS, with_controls("warmup-all", "authors", "threshold-0.01"), {"learning_rate": PAPER_RATE}
        ),
        # What a data set of longer answers has time for.
        "core": Other(found["seeds"], with_controls("warmup-all", "threshold-0.01")),
        # Of two defaults: the controls say nothing of which is the better.
        "warmup": Other(WARMUP_SEEDS, named("sstoken", "warmup-all"), against=("sstoken",)),
    }
    return {
        kind: {
            **found,
            "base": {**found["base"], **other.base},
            "out": f"{found['out']}-{kind}",
            "seeds": list(other.seeds),
            "arms": other.arms,
            "against": list(other.against),
        }
        for kind, other in kinds.items()
    }


if __name__ == "__main__":
    main()
