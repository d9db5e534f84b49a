"""TRL's SFTTrainer; see cases.py."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from material import ROOT
from peft import LoraConfig
from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from sstoken_plugin.trl import SSTokenSFTTrainer
from trainers.run_plain import arguments
from trainers.runs import Plan, Trained, main

# SmolLM2's own has no marks around what the assistant says.
TEMPLATE = str(ROOT / "example_configs" / "trl" / "sft.jinja")
# Kind of data: settings.
SETTINGS: dict[str, dict[str, Any]] = {
    "padded": {"max_length": 256},
    "packed": {"packing": True, "max_length": 96},
    "split": {"packing": True, "packing_strategy": "bfd_split", "max_length": 48},
    "padding-free": {"padding_free": True, "max_length": None},
    "assistant-only": {"assistant_only_loss": True, "chat_template_path": TEMPLATE, "max_length": 256},
    "every-token": {"max_length": 256},
}
KINDS = tuple(SETTINGS)


def train(plan: Plan) -> Trained:
    """Train a plan; see cases.py."""
    trainer = make(plan)
    trainer.train(resume_from_checkpoint=plan.resumes_from)
    return Trained.by(trainer)


def make(plan: Plan, kind: Any = None, **keys: Any) -> Any:
    """Make a trainer of the plan.

    Args:
        plan: what to train.
        kind: its class; None for that which selects if the plan does.
        **keys: for the trainer.
    """
    set_seed(0)
    rows = Dataset.from_list(rows_of(plan))
    settings = {**arguments(plan), **SETTINGS[plan.kind], **plan.options}
    if kind is None:
        kind = SFTTrainer
        if plan.sstoken is not None:
            kind, keys = SSTokenSFTTrainer, {"sstoken": plan.sstoken, **keys}
    given = {
        "model": plan.model,
        "args": SFTConfig(model_init_kwargs={"dtype": "float32"}, **settings),
        "train_dataset": rows,
        "eval_dataset": rows if plan.evaluates else None,
        "processing_class": AutoTokenizer.from_pretrained(plan.model),
        "peft_config": LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"),
    }
    return kind(**{**given, **keys})


# TRL refuses an adapter on the output head.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    """Return the chats as TRL takes them: whole, or the last answer apart."""
    if plan.kind in ("assistant-only", "every-token"):
        return plan.rows()
    chats = [row["messages"] for row in plan.rows()]
    return [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in chats]


if __name__ == "__main__":
    main(train)
