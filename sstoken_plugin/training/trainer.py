"""Token selection as a mixin for transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from sstoken_plugin.training.session import Session


class TokenSelectionTrainer(Trainer):
    """Computes the training loss on selected tokens; evaluation stays as it is.

    As the last base class before `Trainer`, it gets the inputs as a framework's own trainer prepared them:
    `class MyTrainer(FrameworkTrainer, TokenSelectionTrainer)`.

    Attributes:
        sstoken: the selection of this trainer; None trains on everything.
        resumes_from: the checkpoint that the training under way began from; None for none.
    """

    # All state is in there: a trainer may become one of this class after it was made.
    sstoken: Session | None = None
    resumes_from: Path | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of the kept tokens in training, and the ordinary loss in evaluation."""
        session = self.sstoken
        if session is None or session.selection is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        session.refuse_other_loss()
        session.refuse_other_count(num_items_in_batch)
        # Whoever called may still need the labels, which Trainer takes out.
        inputs = dict(inputs)
        step = session.score(inputs)
        # Trainer pops the labels and hands outputs to this function: no fused loss, no second forward pass.
        # It must not stay set, because Trainer then normalises losses in another way.
        self.compute_loss_func = session.loss_of(step)
        try:
            # Who asks for outputs reads the logits of every token.
            with step.observed(all_logits=return_outputs):
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        except Exception:
            if "labels" in inputs:
                # Whoever computes the loss in Trainer's place did not take them out.
                session.refuse_if_bypassed()
            raise
        finally:
            self.compute_loss_func = None
        session.take(step)
        return loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Collect the batches of an optimizer step, and count kept tokens where Trainer counts labels."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        session = self.sstoken
        if session is None or session.selection is None:
            return batches, items
        session.expect(len(batches))
        if items is None or session.phase_now.keeps_everything:
            return batches, items
        # Stand-in labels with k tokens a sample let Trainer's own counting, over accumulation and ranks, do the rest.
        stand_ins = [{"labels": session.labels_to_count(batch)} for batch in batches]
        _, items = super().get_batch_samples(iter(stand_ins), len(stand_ins), device)
        return batches, items

    def get_train_dataloader(self) -> Any:
        """Return what yields the batches, and take note of how many an epoch has."""
        loader: Any = super().get_train_dataloader()
        if self.sstoken is not None and hasattr(loader, "__len__"):
            self.sstoken.batches = len(loader)
        return loader

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the metrics of the selection to every training log line."""
        # The last line of a run has no metrics: what the steps since the line before show is warned of, and no more.
        if self.sstoken is not None and self.sstoken.selection is not None and ("loss" in logs or "train_loss" in logs):
            metrics = self.sstoken.metrics()
            logs.update(metrics if "loss" in logs else {})
        super().log(logs, *args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Begin the selection, too: by now engines have sharded the weights, and those of a checkpoint come next."""
        self._begin_selection()
        return super().create_scheduler(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._begin_selection()
        super()._load_from_checkpoint(*args, **kwargs)

    def _begin_selection(self) -> None:
        if self.sstoken is not None:
            self.sstoken.begin()

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see transformers' `Trainer.train`."""
        # True is the last one there.
        last = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self.resumes_from = Path(last) if last else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def resume_selection(self) -> None:
        """Take over the state of the checkpoint that this run resumes from, if it does."""
        if self.sstoken is not None and self.resumes_from is not None:
            self.sstoken.resume(self.resumes_from)

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        # First, because Trainer's own state, without which no run resumes, is the last file of a checkpoint.
        if self.sstoken is not None:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.sstoken.save(folder)
        super()._save_checkpoint(model, trial, *args, **kwargs)
