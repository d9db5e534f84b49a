"""The model that the fine-tuning starts from: a small Llama that knows some of the tasks, one of them by half."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evidence.tasks import (
    ANSWER_DIGITS,
    ANSWER_PLACE,
    BEGIN,
    END,
    END_PLACE,
    PAD,
    RULES,
    UNKNOWN,
    VOCABULARY,
    answers,
    prompts,
    rows,
)

# Of the file that says how a base was made; without it there is none.
MADE = "made.json"


@dataclass(frozen=True)
class Recipe:
    """How the base is trained, in two phases.

    In the first it learns `mixture`. In the second the half-known task joins, each time it comes with a share of
    `half_share`, until the base says at least `half_until` of its digits right; there the training ends. So the base is
    caught in the midst of learning it, as a model is that has seen something too seldom.

    Attributes:
        mixture: tasks of the first phase, each as often as it is named.
        steps: of the first phase.
        batch: samples a step.
        learning_rate: at its highest; over the last third of the first phase it falls linearly to `end_rate`, where it
            stays.
        end_rate: see there.
        warmup: steps of rising.
        half_share: see there.
        half_until: share of digits, 0 to 1.
        look_every: steps between two looks at that share.
        most_steps: of the second phase.
        probed: samples by which is told what the base knows.
        seed: of weights and samples.
    """

    mixture: tuple[str, ...] = ("copy", "next", "shift", "known", "known", "known")
    steps: int = 450
    batch: int = 32
    learning_rate: float = 2e-3
    end_rate: float = 3e-4
    warmup: int = 30
    half_share: float = 0.25
    half_until: float = 0.5
    look_every: int = 2
    most_steps: int = 400
    probed: int = 256
    seed: int = 0


RECIPE = Recipe()


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the tasks: a symbol is a token, whatever white space stands around it."""
    words = Tokenizer(WordLevel({symbol: number for number, symbol in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=BEGIN, eos_token=END, pad_token=PAD, unk_token=UNKNOWN
    )


def untrained(seed: int) -> LlamaForCausalLM:
    """Return the model with its first weights."""
    torch.manual_seed(seed)
    bos, eos, pad = (VOCABULARY.index(symbol) for symbol in (BEGIN, END, PAD))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
        )
    )


def make(folder: Path, recipe: Recipe = RECIPE) -> dict[str, Any]:
    """Train the base and write it with its tokenizer, unless the folder has one of this recipe; say what it knows.

    Args:
        folder: of the base.
        recipe: how it is trained.

    Returns:
        What `made.json` has: the recipe, the steps of the second phase, seconds of one core, the number of parameters,
        a hash of the weights, and by task what it knows, see `knowledge`.
    """
    wanted = json.loads(json.dumps(asdict(recipe)))
    if (found := made_before(folder, "recipe", wanted)) is not None:
        return found
    begin = time.process_time()
    with one_thread():
        model = untrained(recipe.seed)
        half_steps = pretrain(model, recipe)
        knows = {task: knowledge(model, task, recipe.probed) for task in RULES}
    made = {
        "recipe": wanted,
        "half_steps": half_steps,
        "cpu_seconds": round(time.process_time() - begin, 1),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "weights_sha256": _digest(model),
        "knows": knows,
    }
    write_model(folder, model, made)
    return made


def made_before(folder: Path, key: str, wanted: Any) -> dict[str, Any] | None:
    """Return what `made.json` has if the model of a folder was made as wanted; else None, and the folder has none."""
    file = folder / MADE
    if file.exists() and (found := json.loads(file.read_text(encoding="utf-8")))[key] == wanted:
        return dict(found)
    file.unlink(missing_ok=True)
    return None


def write_model(folder: Path, model: LlamaForCausalLM, made: Mapping[str, Any]) -> None:
    """Write a model with its tokenizer, and last how it was made."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / MADE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute by one thread inside the block: the order of a sum depends on how many share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pretrain(model: LlamaForCausalLM, recipe: Recipe) -> int:
    """Train the model as the recipe says, and return the steps of its second phase."""
    rng = np.random.default_rng(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(recipe.steps):
        fall = max(0.0, 3 * (step + 1) / recipe.steps - 2)
        rate = recipe.learning_rate + fall * (recipe.end_rate - recipe.learning_rate)
        rate *= min(1, (step + 1) / recipe.warmup)
        train_step(model, optimizer, rate, _mixed(recipe.mixture, recipe.batch, rng))
    own = round(recipe.half_share * recipe.batch)
    for step in range(recipe.most_steps):
        if step % recipe.look_every == 0 and knowledge(model, "half", recipe.probed)["digits"] >= recipe.half_until:
            return step
        others = _mixed(recipe.mixture, recipe.batch - own, rng)
        train_step(model, optimizer, recipe.end_rate, torch.cat([others, _mixed(("half",), own, rng)]))
    return recipe.most_steps


def knowledge(model: LlamaForCausalLM, task: str, count: int) -> dict[str, float]:
    """Return what a model knows of a task, on prompts that are held out, and the same in every call.

    Returns:
        `digits`: share of response digits that are the most likely ones, given those before; `samples`: share of
        samples in which all are; `loss`: mean loss of the digits, in nats.
    """
    of = prompts(count, np.random.default_rng(1), held_out=True)
    ids = torch.from_numpy(rows(task, of, answers(RULES[task], of)))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, ANSWER_PLACE - 1 : END_PLACE - 1]
    target = ids[:, ANSWER_PLACE:END_PLACE]
    right = logits.argmax(-1) == target
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    assert right.shape == (count, ANSWER_DIGITS)
    found = {"digits": right.float().mean(), "samples": right.all(1).float().mean(), "loss": loss}
    return {name: round(value.item(), 4) for name, value in found.items()}


def _mixed(tasks: tuple[str, ...], count: int, rng: np.random.Generator) -> Tensor:
    """Draw samples of tasks that are drawn too, token ids [count, WIDTH]."""
    of = prompts(count, rng, held_out=False)
    drawn = rng.integers(0, len(tasks), count)
    parts = [
        rows(task, of[drawn == number], answers(RULES[task], of[drawn == number])) for number, task in enumerate(tasks)
    ]
    return torch.from_numpy(np.concatenate(parts))


def train_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, rate: float, ids: Tensor) -> None:
    """Take an optimizer step on the responses of samples, token ids [N, WIDTH]."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    labels = ids.clone()
    labels[:, :ANSWER_PLACE] = -100
    optimizer.zero_grad()
    model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _digest(model: LlamaForCausalLM) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    return digest.hexdigest()
