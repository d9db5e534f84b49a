"""The reference model of RHO-1's rule: the base, fine-tuned on clean samples of one task that no arm sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from evidence.base import MADE, knowledge, made_before, one_thread, train_step, write_model
from evidence.tasks import RULES, answers, prompts, rows

# As many steps as an arm has, at the same rate.
STEPS, BATCH, LEARNING_RATE = 245, 32, 5e-4
_DATA_SEED = 4


def make_reference(folder: Path, base: Path, task: str, steps: int = STEPS) -> dict[str, float]:
    """Fine-tune the base on a task and write the model, unless the folder has one that was made from this base.

    Args:
        folder: of the reference.
        base: folder of the base, see `base.make`.
        task: one of `tasks.RULES`.
        steps: of the training, whose rate falls linearly to 0.

    Returns:
        What it knows of the task, see `base.knowledge`.
    """
    wanted = {"base": json.loads((base / MADE).read_text(encoding="utf-8"))["weights_sha256"], "steps": steps}
    if (found := made_before(folder, "made_from", wanted)) is not None:
        return dict(found["knows"])
    with one_thread():
        model = LlamaForCausalLM.from_pretrained(base)
        rng = np.random.default_rng([_DATA_SEED, list(RULES).index(task)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        for step in range(steps):
            of = prompts(BATCH, rng, held_out=False)
            ids = torch.from_numpy(rows(task, of, answers(RULES[task], of)))
            train_step(model, optimizer, LEARNING_RATE * (1 - step / steps), ids)
        knows = knowledge(model, task, 256)
    write_model(folder, model, {"made_from": wanted, "knows": knows})
    return knows
