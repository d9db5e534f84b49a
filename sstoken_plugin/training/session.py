"""The selection of one training run: what selects, what is counted and watched, and what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from sstoken_plugin.base.logs import logger
from sstoken_plugin.engine.run import Names
from sstoken_plugin.engine.sharding import any_rank
from sstoken_plugin.engine.step import Phase, ScoredStep, TokenSelection
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import IGNORE_INDEX
from sstoken_plugin.selection.turns import Turns
from sstoken_plugin.training import checkpoint, sampling
from sstoken_plugin.training.metrics import Totals, counts, ratios
from sstoken_plugin.training.monitor import SelectionMonitor
from sstoken_plugin.training.parts import HistoryPart, MonitorPart, Part, TotalsPart, WarningsPart
from sstoken_plugin.training.survey import Survey
from sstoken_plugin.training.tokenizers import tokenizer_of

LOG = logger(__name__)


class Session:
    """The selection of one trainer, from the making of the trainer to the end of its training.

    Args:
        trainer: the trainer.
        config: the settings.
        make_selection: builds what selects, when training begins.
        names: how users call what sentences speak of.

    Attributes:
        config: the settings.
        selection: what selects; None before training.
        survey: what was found in the data; None before training, and where they cannot be looked at.
        phase: what ranked the tokens of the last step; None before the first.
        warnings: every warning raised about the selection, in order.
        watchers: are shown every scored step of the training, and must not change it.
        parts: what has state in a checkpoint beside the selection's own.
        batches: micro-batches of an epoch on this rank; None where that is not known yet.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: SSTokenConfig,
        make_selection: Callable[[], TokenSelection],
        names: Names = Names(),
    ):
        self.config = config
        self.selection: TokenSelection | None = None
        self.survey: Survey | None = None
        self.phase: Phase | None = None
        self.warnings: list[str] = []
        self.watchers: list[Callable[[ScoredStep], None]] = []
        self.parts: list[Part] = []
        self.names = names
        self.batches: int | None = None
        self.totals = Totals()
        self._trainer = trainer
        self._make_selection = make_selection
        self._monitor = SelectionMonitor()
        self._scored = False
        # Micro-batches of the optimizer step under way: those that Trainer has collected, and those selected from.
        self._expected = self._taken = 0
        self._has_begun = False
        self._selected_for: Any = None
        self._frozen: list[tuple[str, Tensor]] = []

    @property
    def model(self) -> Any:
        """The unwrapped model in training."""
        return self._trainer.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, see `tokenizer_of`."""
        return tokenizer_of(self._trainer)

    @property
    def samples(self) -> Any:
        """The prepared data set of the training."""
        return self._trainer.train_dataset

    @property
    def is_first_rank(self) -> bool:
        """Whether this process speaks for all."""
        return self._trainer.is_world_process_zero()

    @property
    def phase_now(self) -> Phase:
        """What ranks tokens in the optimizer step under way."""
        state: Any = self._trainer.state
        in_warmup = state.global_step < self.config.warmup_steps(state.max_steps)
        return Phase.of(self.config, in_warmup=in_warmup, draw=int(state.epoch or 0))

    @property
    def _is_sampled(self) -> bool:
        """Whether the micro-batch under way is a sample; it follows from the optimizer steps, so that it resumes."""
        state, each = self._trainer.state, self._trainer.args.gradient_accumulation_steps
        # The last step of an epoch may have fewer.
        there = self._expected or each
        begin, end = (number * each // there for number in (self._taken, self._taken + 1))
        return sampling.is_sampled(state.global_step * each + begin, state.max_steps * each, end - begin)

    def begin(self) -> None:
        """Build the selection, at most once: the weights are the first ones, and sharded if they ever will be.

        Raises:
            ValueError: the trainer was given a loss of its own, which the selection would replace.
        """
        # A trainer with `model_init` makes a new model for each training.
        is_of_another = self._trainer.model_init is not None and self._selected_for is not self.model
        if self.selection is None or is_of_another:
            self.refuse_other_loss()
            self.selection = self._make_selection()
            self._selected_for = self.model
            self._frozen = [entry for entry in self.model.named_parameters() if not entry[1].requires_grad]

    def begin_run(self) -> None:
        """Forget an earlier training of the same trainer, as one that ran out of memory, but for its history."""
        if self._has_begun:
            self.phase = None
            self.totals.clear()
            self.warnings.clear()
            self._monitor.clear()
            for part in self.parts:
                part.begin_anew()
        self._has_begun = True
        self._expected = self._taken = 0

    def refuse_other_loss(self) -> None:
        """Refuse a loss that the selection would take the place of.

        Raises:
            ValueError: there is one.
        """
        own: Any = self._trainer.compute_loss_func
        if own is not None:
            name = getattr(own, "__name__", type(own).__name__)
            raise ValueError(
                f"compute_loss_func: the trainer was given a loss of its own, {name}, in place of which sstoken "
                "would compute its own; remove the key or the plugin that sets it, or sstoken."
            )

    def expect(self, micro_batches: int) -> None:
        """Take note of how many micro-batches the next optimizer step has, whose kept tokens are counted."""
        self._expected, self._taken = micro_batches, 0

    def refuse_other_count(self, items: Any) -> None:
        """Refuse a number of tokens to divide by that was not counted among the kept ones.

        Raises:
            RuntimeError: see there.
        """
        if items is not None and not self._expected and not self.phase_now.keeps_everything:
            raise RuntimeError(
                f"{type(self._trainer).__name__} counts the tokens of a step without sstoken (get_batch_samples), so "
                "that the loss would be divided by tokens that are not trained on; let it call "
                f"super().get_batch_samples, or {self.names.without}."
            )

    def score(self, inputs: Any) -> ScoredStep:
        """Start the scoring of a batch, see `TokenSelection.begin`.

        Raises:
            ValueError: the batch has no labels.
        """
        assert self.selection is not None
        if inputs.get("labels") is None:
            raise ValueError(
                f"{self.names.data}: a batch has no labels, so that nobody could tell prompt and response; give each "
                "row a column `labels`, -100 where a token is prompt."
            )
        self.phase = self.phase_now
        self._scored = False
        return self.selection.begin(self.model, inputs, self.phase, only_needed=not self._is_sampled)

    def loss_of(self, step: ScoredStep) -> Callable[..., Tensor]:
        """Return the loss of a step as a `compute_loss_func` whose call is noticed."""

        def loss_of_step(*args: Any, **kwargs: Any) -> Tensor:
            self._scored = True
            return step.loss(*args, **kwargs)

        return loss_of_step

    def refuse_if_bypassed(self) -> None:
        """Stop a run whose last step did not come to the selection, and so trained on everything.

        Raises:
            RuntimeError: see there.
        """
        if self.selection is not None and not self._scored:
            raise RuntimeError(
                f"{type(self._trainer).__name__} computed the loss of a step without sstoken, so that nothing was "
                f"selected; remove what brings a loss or a trainer of its own, or {self.names.without}."
            )

    def after_step(self, *, is_skipped: bool) -> None:
        """Take in an optimizer step.

        Args:
            is_skipped: whether overflow made the optimizer leave the weights as they were.

        Raises:
            RuntimeError: the step was not computed by the selection, or more trains than when the run began.
        """
        self._scored = self._scored and self._taken >= self._expected
        self.refuse_if_bypassed()
        self._scored = False
        self._expected = self._taken = 0
        history = None if self.selection is None else self.selection.history_model
        if history is None:
            return
        if self.config.needs_history:
            self._refuse_later_ones(history)
        if not is_skipped:
            history.after_step(self.model, self._trainer.state.global_step)

    def _refuse_later_ones(self, history: Any) -> None:
        later = [name for name, parameter in self._frozen if parameter.requires_grad]
        if changed := [name for name in later if history.depends_on(name)]:
            raise RuntimeError(
                f"requires_grad: {len(changed)} tensors train that did not when the run began ({changed[0]}, ...), and "
                f"the history (sstoken.history: {self.config.history}) has not kept what they were; let them train "
                "from the start, or set sstoken.selector to attention or threshold, which need no history."
            )

    def take(self, step: ScoredStep) -> None:
        """Count a step whose loss was computed, and show it to the watchers.

        Raises:
            RuntimeError: its loss was not computed by the selection.
        """
        self.refuse_if_bypassed()
        self._taken += 1
        self.totals.add(counts(step))
        for watch in self.watchers:
            watch(step)

    def metrics(self) -> dict[str, float]:
        """Return the metrics since the last call, and warn of what they show; every rank must call this."""
        total = self.totals.take(self.sum_over_ranks)
        if self.phase is not None:
            self.warn(self._monitor.observe(self.phase.rule, total))
        return {name: round(value, 5) for name, value in ratios(total).items()}

    def labels_to_count(self, batch: dict[str, Tensor]) -> Tensor:
        """Return labels with as many tokens as will be kept of each sample, int64 [B, S]: k follows from the labels."""
        assert self.selection is not None
        phase = self.phase_now
        layout = phase.layout(batch)
        turns = Turns.of(batch, layout, self.selection.end_tokens)
        places = self.selection.kept_per_sample(layout, turns, phase.ratio)
        counted = layout.index_in_sample < places[layout.sample]
        labels = torch.full(layout.shape, IGNORE_INDEX, device=layout.position.device)
        labels.view(-1)[layout.position] = torch.where(counted, 0, IGNORE_INDEX)
        return labels

    def save(self, folder: Path) -> None:
        """Write the state of every part into a checkpoint folder; every rank must call this."""
        if self.selection is None:
            return
        states = [(part, part.state()) for part in self._all_parts()]
        if not self._trainer.args.should_save:
            return
        mark = checkpoint.new_mark()
        faults = checkpoint.write(folder, [(part, saved) for part, saved in states if saved is not None], mark)
        if faults:
            self.warn([f"ssToken: {folder} is without {', '.join(faults)}."])
        callbacks: Any = self._trainer.state.stateful_callbacks
        callbacks[checkpoint.FOLDER] = mark

    def resume(self, folder: Path) -> None:
        """Take over the state of the checkpoint that this run resumes from, once its weights are loaded.

        What cannot be read on one rank is taken over on none.
        """
        if self.selection is None:
            return
        parts = [part for part in self._all_parts() if part.is_taken_over]
        found, reason = None, "another rank could not read it"
        try:
            found = checkpoint.read(folder, {part.name for part in parts})
            reason = "it was made without the plugin" if found is None else reason
        except ValueError as error:
            reason = str(error)
        if self.any_rank(found is None):
            assumed = " ".join(filter(None, [part.begin_anew() for part in parts]))
            self.warn(
                [f"ssToken: {folder} does not hold the state of this selection ({reason}): {assumed}, and metrics and "
                 "warnings begin anew."]
            )  # fmt: skip
            return
        assert found is not None
        lost = [f"metrics and warnings ({found.fault})"] if found.fault else []
        told = []
        for part in parts:
            why, assumed = self._take_over(part, found)
            if assumed:
                told.append(f"ssToken: {folder} does not hold {part.words} of this selection ({why}): {assumed}.")
            elif why:
                lost.append(f"{part.words} ({why})")
            elif sentence := part.check():
                told.append(sentence)
        if lost:
            told.insert(0, f"ssToken: {folder} holds parts that cannot be read, and begin anew: {', '.join(lost)}.")
        self.warn(told)

    def _take_over(self, part: Part, found: checkpoint.Found) -> tuple[str, str]:
        """Let a part take over its state; return why not, and what is assumed then, both "" where it did."""
        saved, why = found.parts.get(part.name), found.lost.get(part.name, "")
        mark = part.mark(saved)
        # Every rank comes to each of the questions, whatever it could read.
        alike = mark == self.of_first_rank(mark)
        if not why and alike:
            try:
                part.restore(saved)
            except ValueError as error:
                why = str(error)
        if not self.any_rank(bool(why) or not alike):
            return "", ""
        assumed = part.begin_anew()
        # A part that is not there is none that was lost.
        return why or ("another rank could not read it, or has another" if saved or assumed else ""), assumed

    def _all_parts(self) -> list[Part]:
        """Return every part, in the order in which all ranks go through them."""
        assert self.selection is not None
        args = self._trainer.args
        return [
            TotalsPart(
                self.totals,
                lambda: self.totals.peek(self.sum_over_ranks),
                args.device,
                is_first=args.process_index == 0,
            ),
            MonitorPart(self._monitor),
            WarningsPart(self.warnings),
            HistoryPart(
                self.config.history,
                self.selection.history_model,
                self.model,
                is_writer=args.should_save,
                any_rank=self.any_rank,
            ),
            *self.parts,
        ]

    def sum_over_ranks(self, vector: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; every rank must call this."""
        args = self._trainer.args
        if args.world_size == 1:
            return vector
        total: Tensor = self._trainer.accelerator.reduce(vector.to(args.device), reduction="sum")
        return total

    def of_first_rank(self, value: float) -> float:
        """Return what the first rank gives; every rank must call this."""
        own = value if self._trainer.args.process_index == 0 else 0.0
        return self.sum_over_ranks(torch.tensor([own], dtype=torch.float64)).item()

    def any_rank(self, flag: bool) -> bool:
        """Tell whether `flag` is set on any rank; every rank must call this."""
        return any_rank(flag, self._trainer.args.device)

    def flush(self) -> None:
        """Write losses that wait to be written."""
        losses = self.selection.history if self.selection is not None else None
        if losses is not None and losses.store is not None:
            losses.store.flush()

    def warn(self, warnings: list[str]) -> None:
        """Raise warnings about the selection, and keep them."""
        self.warnings += warnings
        if self.is_first_rank:
            for warning in warnings:
                LOG.warning(warning)
