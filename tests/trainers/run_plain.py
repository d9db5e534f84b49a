"""transformers' own Trainer; see cases.py."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from material import STEADY
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
    set_seed,
)

from sstoken_plugin import attach
from trainers.data import labelled
from trainers.runs import Plan, Trained, main

KINDS = ("padded", "padding-free")


def train(plan: Plan) -> Trained:
    """Train a plan; see cases.py."""
    trainer = make(plan)
    if plan.sstoken is not None:
        attach(trainer, plan.sstoken)
    trainer.train(resume_from_checkpoint=plan.resumes_from)
    return Trained.by(trainer)


def make(plan: Plan) -> Any:
    """Make a trainer that knows nothing of selection."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(plan.model)
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=torch.float32, attn_implementation="sdpa")
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = Dataset.from_list([labelled(tokenizer, row["messages"]) for row in plan.rows()])
    collators = {"padded": DataCollatorForSeq2Seq(tokenizer), "padding-free": DataCollatorWithFlattening()}
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments(plan), **plan.options),
        train_dataset=rows,
        eval_dataset=rows if plan.evaluates else None,
        data_collator=collators[plan.kind],
        processing_class=tokenizer,
    )


def arguments(plan: Plan) -> dict[str, Any]:
    """A plan as transformers' TrainingArguments, which other trainers add theirs to."""
    return {
        "output_dir": plan.folder,
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.batch,
        "gradient_accumulation_steps": plan.accumulation,
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "eval_strategy": "steps" if plan.evaluates else "no",
        "eval_steps": 1,
        "save_strategy": "steps" if plan.saves else "no",
        "save_steps": plan.saves or 500,
        "seed": 42,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        **STEADY,
    }


if __name__ == "__main__":
    main(train)
