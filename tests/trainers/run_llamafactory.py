"""LLaMA-Factory, as `llamafactory-cli train` runs it; see cases.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llamafactory.train import tuner
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from trainers.run_plain import arguments
from trainers.runs import Plan, Trained, main

KINDS = ("padded", "neat-packing")
# Tokens of a packed row, one to three of the chats: 16 rows, of which each optimizer step takes whole micro-batches.
WIDTH = 56


def train(plan: Plan) -> Trained:
    """Train a plan; see cases.py."""
    # LLaMA-Factory ends its process with a run: the ranks of the next one here would not find each other again.
    with made_trainers() as made, patch.object(tuner.dist, "destroy_process_group", lambda: None):
        tuner.run_exp(settings(plan))
    return Trained.by(made[-1])


@contextmanager
def made_trainers() -> Iterator[list[Any]]:
    """Remember the trainers that train, which LLaMA-Factory keeps to itself."""
    made: list[Any] = []

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(self)
        result = super(CustomSeq2SeqTrainer, self).train(*args, **kwargs)
        # LLaMA-Factory would evaluate once more.
        self.args.do_eval = False
        return result

    with patch.object(CustomSeq2SeqTrainer, "train", remember, create=True):
        yield made


def settings(plan: Plan) -> dict[str, Any]:
    """A plan as LLaMA-Factory's YAML."""
    given = {
        **arguments(plan),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "model_name_or_path": plan.model,
        "flash_attn": "sdpa",
        "template": "smollm",
        "dataset": "chats",
        "dataset_dir": str(data_folder(plan)),
        "cutoff_len": 512,
        **plan.options,
    }
    if plan.kind == "neat-packing":
        given |= {"neat_packing": True, "cutoff_len": WIDTH}
    if plan.evaluates:
        given |= {"eval_dataset": "chats", "do_eval": True}
    if plan.resumes_from is not None:
        given["resume_from_checkpoint"] = plan.resumes_from
    if plan.sstoken is not None:
        given["sstoken"] = plan.sstoken
    return given


def data_folder(plan: Plan) -> Path:
    """Describe the chats as LLaMA-Factory wants them described, in a folder beside them."""
    folder = Path(plan.folder).with_suffix(".data")
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "file_name": plan.chats,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"chats": described}))
    return folder


if __name__ == "__main__":
    main(train)
