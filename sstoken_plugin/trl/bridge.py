"""How token selection gets into TRL's SFTTrainer."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from trl.trainer import utils

from sstoken_plugin.engine.run import Names, Run
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.training.bridge import Bridge
from sstoken_plugin.training.trainer import TokenSelectionTrainer
from sstoken_plugin.trl import refusals

NAMES = Names(trainer="SFTTrainer", data="train_dataset", packing="packing")
# Releases of TRL with a fused output head add a model's own loss (that of routers) themselves, as a mean over the
# micro-batches and ranks of a step; before, it was their sum, as in transformers.
AVERAGES_ADDED = hasattr(utils, "add_fused_lm_head")


class SelectedLoss:
    """What stands before SFTTrainer: the way from prepared inputs to the selected loss, past TRL's own in training.

    TRL's loss is that of all tokens, and its entropy and token accuracy take a pass over all logits. Its count of
    tokens is kept up.
    """

    _evaluates = False

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the selected loss in training, and TRL's in evaluation."""
        if not model.training:
            self._evaluates = True
            try:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
            finally:
                self._evaluates = False
        # With a cache transformers does not look for the samples of a packed row.
        inputs["use_cache"] = False
        if AVERAGES_ADDED and num_items_in_batch is not None:
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            self.sstoken.selection.added_share = 1 / (self.current_gradient_accumulation_steps * ranks)
        result = TokenSelectionTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        self._count_tokens(inputs)
        return result

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Train; see transformers' `Trainer.train`."""
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        chunked = self.args.loss_type == "chunked_nll"
        if (AVERAGES_ADDED or chunked) and hasattr(model, "router_aux_loss_coef"):
            # TRL's losses take it from the configuration, where TRL puts its own setting; a model has read it before.
            model.router_aux_loss_coef = model.config.get_text_config().router_aux_loss_coef
        if chunked:
            self._keep_for_evaluation(model)
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def _keep_for_evaluation(self: Any, model: Any) -> None:
        """Give a model its own forward pass back, in place of TRL's that returns a loss without logits, in training."""
        chunked = vars(model).get("forward")
        if chunked is None or getattr(chunked, "of_sstoken", False):
            return
        own = type(model).forward

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            return chunked(*args, **kwargs) if self._evaluates else own(module, *args, **kwargs)

        forward.of_sstoken = True  # type: ignore[attr-defined]
        model.forward = MethodType(forward, model)

    def _count_tokens(self: Any, inputs: Any) -> None:
        """Count the tokens of a micro-batch over all ranks, as TRL does, for its metric `num_tokens`."""
        if "attention_mask" in inputs:
            own = inputs["attention_mask"].sum()
        else:
            own = torch.tensor(inputs["input_ids"].shape[1], device=inputs["input_ids"].device)
        self._total_train_tokens += self.accelerator.gather_for_metrics(own).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


class TrlBridge(Bridge):
    """The bridge to SFTTrainer."""

    front = SelectedLoss

    def refuse(self, trainer: Any, config: SSTokenConfig) -> None:
        """Refuse what cannot run beside the selection; see `Bridge.refuse`."""
        refusals.refuse(trainer)
        super().refuse(trainer, config)

    def run_of(self, trainer: Any, config: SSTokenConfig) -> Run:
        """Return what the trainer's run is to the selection; see `Bridge.run_of`."""
        args = trainer.args
        # A configuration with a block of ours does not start a training that nothing selects for.
        args.sstoken_is_read = True
        return replace(
            super().run_of(trainer, config),
            revision=(args.model_init_kwargs or {}).get("revision"),
            packs=args.packing,
            names=NAMES,
        )


BRIDGE = TrlBridge()
