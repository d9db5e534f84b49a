"""ms-swift, as `swift sft` runs it; see cases.py."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from material import ROOT
from swift.pipelines import sft_main
from swift.trainers import Seq2SeqTrainer

from trainers.run_plain import arguments
from trainers.runs import Plan, Trained, main

KINDS = ("padded",)
REGISTER = ROOT / "sstoken_plugin" / "swift" / "register.py"


def train(plan: Plan) -> Trained:
    """Train a plan; see cases.py."""
    if plan.sstoken is not None:
        os.environ["SSTOKEN"] = json.dumps(plan.sstoken)
    try:
        with made_trainers() as made:
            sft_main(words(settings(plan)))
    finally:
        # Not by a copy of the environment: datasets puts another object into the place of os.environ.
        os.environ.pop("SSTOKEN", None)
    return Trained.by(made[-1])


@contextmanager
def made_trainers() -> Iterator[list[Any]]:
    """Remember the trainers that train, which ms-swift keeps to itself."""
    made: list[Any] = []
    train = Seq2SeqTrainer.train

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(self)
        return train(self, *args, **kwargs)

    with patch.object(Seq2SeqTrainer, "train", remember):
        yield made


def settings(plan: Plan) -> dict[str, Any]:
    """A plan as ms-swift's YAML."""
    given = {
        **arguments(plan),
        "model": plan.model,
        "model_type": "llama",
        "template": "chatml",
        "dataset": [plan.chats],
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "tuner_type": "lora",
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "add_version": False,
        "per_device_eval_batch_size": plan.batch,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "split_dataset_ratio": 0.0,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "check_model": False,
        "gradient_checkpointing": False,
        **plan.options,
    }
    if plan.evaluates:
        given["val_dataset"] = [plan.chats]
    if plan.resumes_from is not None:
        given["resume_from_checkpoint"] = plan.resumes_from
    if plan.sstoken is not None:
        given |= {"external_plugins": [str(REGISTER)], "callbacks": ["sstoken"]}
    return given


def words(given: dict[str, Any]) -> list[str]:
    """Settings as words of a command line, which is what ms-swift makes of a YAML."""
    found = []
    for key, value in given.items():
        found += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return found


if __name__ == "__main__":
    main(train)
