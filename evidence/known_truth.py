"""Make everything of the known-truth experiments: tokenizer, base model, data, and the YAML of each experiment.

    python -m evidence.known_truth
    python -m sstoken_plugin.experiments .cache/evidence/known-truth/experiments/new-noise20.yaml
    python -m evidence.collect .cache/evidence/known-truth/experiments/new-noise20.yaml

Three fine-tuning tasks differ in what the base knows of them: `new` it has never seen, `known` it has mastered, `half`
it was about to learn; see `tasks.RULES` and `base.Recipe`. Of the response digits in the training data a share of 0 to
40 % is replaced by another digit, uniformly drawn. What is evaluated is clean.

Everything follows from seeds; the weights of the base, and how long its second phase is, also from how the machine
rounds: `base/made.json` has a hash of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidence import jsonl
from evidence.arms import AGAINST, LATE_SEEDS, arms, confirmed, late, remedies, settings, with_controls
from evidence.base import RECIPE, Recipe, make
from evidence.reference import STEPS, make_reference
from evidence.tasks import (
    ANSWER_DIGITS,
    ANSWER_PLACE,
    END_PLACE,
    RULES,
    WIDTH,
    Bools,
    Ints,
    Noise,
    answers,
    as_segments,
    is_noise,
    prompts,
    response,
    rows,
)
from sstoken_plugin.axolotl.experiment import write as write_yaml

FOLDER = Path(".cache/evidence/known-truth")
TASKS = ("new", "known", "half")
LEVELS = (0, 10, 20, 40)
# Of the experiments that change one setting at a time, which have fewer seeds.
SETTINGS_LEVELS, SETTINGS_SEEDS = (0, 20), 3
# Of the experiments that confirm what the others chose; no other has these seeds.
CONFIRMED_LEVELS, CONFIRMATION_SEEDS = (0, 20), (11, 12, 13, 14, 15)
SETTINGS_CONFIRMATION_SEEDS = (21, 22, 23, 24, 25)
# Of the experiments with a threshold that begins late.
LATE_LEVELS = (0, 20, 40)
# Mastered by the base, and in no training data of the experiments.
UNTOUCHED = "shift"
# Samples: one epoch is 245 steps of `BATCH`.
TRAINED, HELD_OUT = 7840, 512
BATCH = 32
# Of the trainings, where the command line names none.
SEEDS = (1, 2, 3, 4, 5)
_DATA_SEED = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is asked for on the command line."""
    parser = argparse.ArgumentParser(
        description="Make the data, the model and the YAMLs of the known-truth experiments."
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of everything (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the trainings")
    asked = parser.parse_args(arguments)
    made = write(asked.out, asked.seeds)
    for task, known in made["knows"].items():
        print(f"{task}: the base has {known['digits']:.1%} of the digits right, {known['samples']:.1%} of the samples")
    print(f"Written to {asked.out}; the experiments are the files of {asked.out}/experiments.")


def write(
    out: Path,
    seeds: Sequence[int],
    recipe: Recipe = RECIPE,
    *,
    trained: int = TRAINED,
    held_out: int = HELD_OUT,
    reference_steps: int = STEPS,
) -> dict[str, Any]:
    """Write everything into a folder; a base of this recipe that is there already stays.

    Args:
        out: the folder.
        seeds: of the trainings.
        recipe: of the base.
        trained: samples of each training data set.
        held_out: samples of each evaluation.
        reference_steps: of the training of each reference model.

    Returns:
        See `base.make`.
    """
    made = make(out / "base", recipe)
    for task in TASKS:
        make_reference(out / f"reference-{task}", out / "base", task, reference_steps)
    write_data(out / "data", trained, held_out)
    for name, found in experiments(out, seeds).items():
        write_yaml(found, out / "experiments" / f"{name}.yaml")
    return made


def experiments(out: Path, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the YAML of each experiment by its name, see docs/experiments.md.

    Args:
        out: folder of everything.
        seeds: of the trainings, but for those that confirm.
    """
    found = {}
    for task in TASKS:
        for level in LEVELS:
            name = name_of(task, level)
            masked = {"oracle": {"changes": {"datasets": _named(out, f"{name}-masked")}}}
            # Without noise the oracle would be the plain arm once more.
            own = {**arms(str(out / "base"), str(out / f"reference-{task}")), **(masked if level else {})}
            found[name] = _experiment(out, name, task, level, own, seeds)
        for levels, kind, own, chosen in (
            (SETTINGS_LEVELS, "settings", settings(), seeds[:SETTINGS_SEEDS]),
            (CONFIRMED_LEVELS, "confirmation", confirmed(), CONFIRMATION_SEEDS),
            (
                CONFIRMED_LEVELS,
                "settings-confirmation",
                with_controls("threshold", "threshold-0.01"),
                SETTINGS_CONFIRMATION_SEEDS,
            ),
            ((20,), "remedies", remedies(), seeds[:SETTINGS_SEEDS]),
            (LATE_LEVELS, "late", late("threshold", "threshold-0.01"), LATE_SEEDS),
        ):
            for level in levels:
                name = f"{name_of(task, level)}-{kind}"
                found[name] = _experiment(out, name, task, level, own, chosen)
    return found


def name_of(task: str, level: int) -> str:
    """Return the name of an experiment, whose noise level is in percent."""
    return f"{task}-noise{level:02d}"


def write_data(folder: Path, trained: int, held_out: int) -> None:
    """Write training data of each task and level, and clean evaluation data; as JSONL of `type: input_output`.

    Where there is noise, a second file has the same samples with no label on digits that are noise: for the oracle.
    """
    for number, task in enumerate(RULES):
        if task not in (*TASKS, UNTOUCHED):
            continue
        rng = np.random.default_rng([_DATA_SEED, number])
        kept = prompts(held_out, rng, held_out=True)
        _write(folder / f"{task}-held-out.jsonl", rows(task, kept, answers(RULES[task], kept)))
        if task == UNTOUCHED:
            continue
        of = prompts(trained, rng, held_out=False)
        clean, noise = answers(RULES[task], of), Noise.draw(trained, rng)
        for level in LEVELS:
            ids = rows(task, of, noise.on(clean, level / 100))
            _write(folder / f"{name_of(task, level)}.jsonl", ids)
            if level:
                _write(folder / f"{name_of(task, level)}-masked.jsonl", ids, without_noise(ids))


def without_noise(ids: Ints) -> Bools:
    """Return the response tokens of samples that are no noise, bool [N, WIDTH]; `ids` are token ids [N, WIDTH]."""
    found = response(len(ids)).copy()
    found[:, ANSWER_PLACE:END_PLACE] &= ~is_noise(ids)
    return found


def _write(file: Path, ids: Ints, trained: Bools | None = None) -> None:
    jsonl.write(file, as_segments(ids, response(len(ids)) if trained is None else trained))


def _experiment(
    out: Path, name: str, task: str, level: int, own: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    clean = {"datasets": _named(out, f"{task}-held-out"), "samples": HELD_OUT}
    return {
        "base": {**_training(out), "datasets": _named(out, name_of(task, level))},
        "out": str(out / "runs" / name),
        "seeds": list(seeds),
        "arms": dict(own),
        "against": list(AGAINST),
        "evaluations": {
            "held_out": {"kind": "loss", **clean},
            "answers": {"kind": "answers", **clean, "max_new_tokens": ANSWER_DIGITS + 2, "batch_size": 128},
            "untouched": {"kind": "forgetting", "datasets": _named(out, f"{UNTOUCHED}-held-out"), "samples": HELD_OUT},
        },
    }


def _named(out: Path, file: str) -> list[dict[str, str]]:
    return jsonl.named(out / "data" / f"{file}.jsonl", "input_output")


def _training(out: Path) -> dict[str, Any]:
    """Return the keys of Axolotl that all trainings have: full fine-tuning, 245 steps of 32 samples."""
    return {
        "base_model": str(out / "base"),
        "plugins": ["evidence.noise.NoisePlugin"],
        "sequence_len": WIDTH,
        "pad_to_sequence_len": False,
        "dataset_num_proc": 1,
        "val_set_size": 0,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 5e-4,
        "lr_scheduler": "cosine",
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "optimizer": "adamw_torch",
        "logging_steps": 10,
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "seed": 42,
    }


if __name__ == "__main__":
    main()
