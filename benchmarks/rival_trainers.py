"""What a user could pick instead of the plugin, rebuilt from the papers as plugins of Axolotl.

    plugins: [rival_trainers.Authors]   # ssToken as its authors run it (arXiv 2510.18250); needs eager attention
    plugins: [rival_trainers.Rho1]      # RHO-1 (arXiv 2404.07965)

What they compute is in rival_selections.py. For benchmarks/rivals.py only.
"""

from __future__ import annotations

from typing import Any

import torch
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import BasePlugin
from rival_selections import kept_by_authors, kept_by_rho1, token_losses
from torch import Tensor
from transformers import AutoModelForCausalLM


class SelectiveTrainer(AxolotlTrainer):
    """Trains on the tokens that `select` keeps."""

    def select(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of each token, float32 [B, S] with gradient, and the tokens kept, bool [B, S]."""
        raise NotImplementedError

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the mean loss of the kept tokens."""
        nll, kept = self.select(model, inputs)
        return nll[kept].mean()


class AuthorsTrainer(SelectiveTrainer):
    """Reads all attention matrices; the losses of the history were computed before training, sample by sample."""

    history: dict[tuple[int, ...], Tensor]

    def remember(self) -> None:
        """Compute the losses of the history on every sample."""
        self.history = {}
        with torch.no_grad(), self.model.disable_adapter():
            for sample in self.train_dataset:
                ids, labels = (torch.tensor(sample[key])[None] for key in ("input_ids", "labels"))
                losses = token_losses(self.model(input_ids=ids, use_cache=False).logits, labels)
                self.history[tuple(ids[0].tolist())] = losses[0]

    def select(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Score by REL and attention on the prompt, as a prefix of each row, and keep the best of each sample."""
        labels = batch["labels"]
        outputs = model(**_inputs(batch), output_attentions=True)
        nll = token_losses(outputs.logits, labels)
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = zip(batch["input_ids"].tolist(), lengths, strict=True)
        past = [self.history[tuple(row[:length])] for row, length in rows]
        return nll, kept_by_authors(nll, outputs.attentions[-1], past, labels, lengths)


class Rho1Trainer(SelectiveTrainer):
    """Holds a second model, the reference, and runs it on every batch."""

    reference: Any

    def select(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Score by the excess loss against the reference and keep the best of the batch."""
        labels = batch["labels"]
        with torch.no_grad():
            reference = token_losses(self.reference(**_inputs(batch), use_cache=False).logits, labels)
        nll = token_losses(model(**_inputs(batch)).logits, labels)
        return nll, kept_by_rho1(nll, reference, labels)


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


class Authors(BasePlugin):
    """Has Axolotl use `AuthorsTrainer`."""

    def get_trainer_cls(self, cfg: Any) -> type:
        """Return the trainer."""
        return AuthorsTrainer

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Compute the history's losses ahead of training."""
        trainer.remember()


class Rho1(BasePlugin):
    """Has Axolotl use `Rho1Trainer`, with the base model as the reference: one that is trained costs the same."""

    def get_trainer_cls(self, cfg: Any) -> type:
        """Return the trainer."""
        return Rho1Trainer

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Load the reference."""
        reference = AutoModelForCausalLM.from_pretrained(cfg.base_model, dtype=torch.float32)
        trainer.reference = reference.eval().requires_grad_(False)
