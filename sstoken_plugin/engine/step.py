"""One scored training step, without any trainer: batch -> signals -> kept tokens -> loss and counts.

    scored = selection.begin(model, batch, phase)      # layout, losses of the history
    with scored.observed():
        outputs = model(**batch_without_labels)        # the training forward pass is the scoring pass
    loss = scored.loss(outputs)                        # kept tokens only

The trainer, the inspector and the benchmarks run these same lines.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.linear_nll import RowLosses
from sstoken_plugin.engine.losses import mean_kept
from sstoken_plugin.engine.modes import class_name
from sstoken_plugin.engine.output_head import ProvenWays, ResponseHead
from sstoken_plugin.engine.own_loss import OwnLoss, added_only
from sstoken_plugin.engine.past import PastLosses
from sstoken_plugin.engine.run import Names
from sstoken_plugin.engine.sharding import any_rank, is_sharded
from sstoken_plugin.engine.unchanged import watching_changes
from sstoken_plugin.engine.visibility import samples_see_each_other
from sstoken_plugin.selection import scores as selection
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout, excerpt, labels_of, may_be_packed
from sstoken_plugin.selection.selectors import Signals, selector_of
from sstoken_plugin.selection.turns import EndTokens, Turns

LOG = logger(__name__)

# Before a response and of it, for a look at the first batch: together more than a model makes blocks of.
_LOOK_TOKENS = 80


@dataclass(frozen=True)
class Phase:
    """What ranks tokens at one moment of a run.

    Attributes:
        rule: what ranks: the name of a selector.
        gamma: weight of REL in the score at this moment; 0 where REL does not count.
        ratio: fraction of each sample's response tokens that is kept; 1 where a threshold decides.
        least: least score of the tokens that are kept, where a threshold decides; else None.
        draw: number of the random draw (the epoch), for `rule: random`.
    """

    rule: str
    gamma: float
    ratio: float
    draw: int = 0
    least: float | None = None

    @property
    def keeps_everything(self) -> bool:
        """Whether no token is dropped, so that training is plain training."""
        return self.ratio == 1 and self.least is None

    @property
    def reads_history(self) -> bool:
        """Whether losses of the history decide what is kept."""
        return not self.keeps_everything and bool(selector_of(self.rule).needs_at(self.gamma) & {"rel", "history"})

    @property
    def reads_attention(self) -> bool:
        """Whether prompt attention decides what is kept."""
        return not self.keeps_everything and "attention" in selector_of(self.rule).needs_at(self.gamma)

    @classmethod
    def of(cls, config: SSTokenConfig, *, in_warmup: bool = False, draw: int = 0) -> Phase:
        """Return the phase of a step.

        Args:
            config: the settings.
            in_warmup: whether the step lies in the first `warmup_ratio` of the run.
            draw: see `Phase`.
        """
        in_warmup = in_warmup and config.has_warmup
        row = selector_of(config.warmup_selector if in_warmup else config.selector)
        ratio = config.ratio if row.reads_ratio else 1.0
        least = math.log(config.min_probability) if row.is_threshold else None
        if row.name == "gain":
            least = 0.0
        return cls(row.name, row.gamma(config.gamma), ratio, draw, least)

    @classmethod
    def at_end(cls, config: SSTokenConfig) -> Phase:
        """Return the phase of the last step of a run: that after the warm-up, if anything is."""
        return cls.of(config, in_warmup=config.is_all_warmup)

    def layout(self, batch: Mapping[str, Tensor]) -> BatchLayout:
        """Return the layout of a batch as this phase sees it."""
        return BatchLayout.of(batch, as_plain=self.keeps_everything)


@dataclass(frozen=True)
class TokenScores:
    """The signals of a batch's response tokens, each float32 [R]; None where not measured.

    Attributes:
        current: loss of the model in training, c.
        history: loss of the history model, h.
        rel: h - c (Eq. 3).
        attention: attention on the prompt, A (Eq. 7).
        score: what ranked the tokens.
    """

    current: Tensor
    history: Tensor | None
    rel: Tensor | None
    attention: Tensor | None
    score: Tensor


class TokenSelection:
    """Selects tokens for one model: holds what a run needs beside the model and the batch.

    Args:
        config: the settings.
        attention: where prompt attention is measured; None if it is not.
        history: gives the losses of the history model; None if REL is not measured.
        end_tokens: what can end a turn, for `keep_eos` and its metric; the ids alone will do.
        seed: for random selection, where the settings give none.
        kernels: per-token losses that are tried before our own, see `kernels`.
        own_loss: what the model adds to its loss; None to find it out on the first batch.
        names: what the trainer's users call what our sentences speak of.
        ways: remembers which losses serve the model's output head; None for one of its own.

    Attributes:
        added_share: how much of what the model adds to its loss counts in a step; trainers differ in how they sum it
            over micro-batches and ranks.
        kept_share: the share of the response tokens, 0 to 1, that the data keeps at the ratio of the settings; None
            where nobody has looked.
    """

    added_share: float = 1.0
    kept_share: float | None = None

    def __init__(
        self,
        config: SSTokenConfig,
        attention: PromptAttention | None,
        history: PastLosses | None,
        end_tokens: EndTokens | Collection[int],
        seed: int = 0,
        kernels: Sequence[RowLosses] = (),
        own_loss: OwnLoss | None = None,
        names: Names = Names(),
        ways: ProvenWays | None = None,
    ):
        self.config = config
        self.attention = attention
        self.history = history
        self.end_tokens = end_tokens if isinstance(end_tokens, EndTokens) else EndTokens(end_tokens)
        self.seed = seed if config.seed is None else config.seed
        self.kernels = kernels
        self.own_loss = own_loss
        self.names = names
        self.ways = ways or ProvenWays()
        self._is_proven = False
        # Where nothing is dropped, training is plain training whatever samples see.
        self._is_separate = Phase.of(config).keeps_everything

    @property
    def history_model(self) -> Any:
        """What gives the losses of the past; None if REL is not measured, or the losses are all kept."""
        return None if self.history is None else self.history.history

    def begin(
        self,
        model: Any,
        batch: Mapping[str, Tensor],
        phase: Phase,
        history_nll: Sequence[float] | None = None,
        *,
        only_needed: bool = False,
        keeps: bool = True,
    ) -> ScoredStep:
        """Start a step: read the batch's layout and compute the history's losses.

        Args:
            model: the unwrapped model. It is not changed.
            batch: see `BatchLayout.of`, and whatever else the model takes.
            phase: what ranks now.
            history_nll: the losses, one a response token, where they are known.
            only_needed: whether to leave out the signals by which nothing ranks now.
            keeps: whether losses that the history computes may be kept in its cache.

        Raises:
            ValueError: on the first batch, if the model cannot be selected for; one sentence with key and fix.
        """
        layout = phase.layout(batch)
        # A batch without response tokens shows nothing.
        if not self._is_proven and len(layout.position):
            self._prove(model, batch, layout)
        if not self._is_separate and may_be_packed(batch):
            self._prove_separate(model, batch)
        attention = None if only_needed and not phase.reads_attention else self.attention
        if history_nll is not None:
            known = torch.tensor(history_nll, dtype=torch.float32, device=layout.position.device)
            return ScoredStep(self, model, batch, layout, phase, attention, known)
        if self.history is None or (only_needed and not self._reads_history(model, phase, layout)):
            return ScoredStep(self, model, batch, layout, phase, attention)
        losses, cached = self.history.of(model, batch, layout, keeps=keeps)
        return ScoredStep(self, model, batch, layout, phase, attention, losses, cached)

    def _reads_history(self, model: Any, phase: Phase, layout: BatchLayout) -> bool:
        """Tell whether losses of the history decide what is kept of a batch; ranks that share a pass agree on it."""
        if phase.reads_history or not phase.reads_attention:
            return phase.reads_history
        # Where attention says nothing, REL decides: see `blend`.
        lacks_prompt = not bool(layout.has_prompt.all())
        return any_rank(lacks_prompt, layout.position.device) if is_sharded(model) else lacks_prompt

    def kept_per_sample(self, layout: BatchLayout, turns: Turns, ratio: float) -> Tensor:
        """Return how many tokens each sample of a batch keeps, int64 [N]; it follows from the labels alone."""
        ends = layout.count(turns.ends) if self.config.keep_eos else None
        return selection.kept_per_sample(layout.lengths, ratio, ends)

    def _prove(self, model: Any, batch: Mapping[str, Tensor], layout: BatchLayout) -> None:
        """Show on the first batch that the model computes what it would compute without us."""
        self._is_proven = True
        if self.own_loss is None:
            self.own_loss = OwnLoss.of(model, self.names, self.ways)
        if self.attention is not None and self._watching_changes(self.attention, model, batch, layout):
            self.do_without_attention(
                f"{class_name(model)} computes something else while {self.attention.description} is watched"
            )

    def _watching_changes(
        self, attention: PromptAttention, model: Any, batch: Mapping[str, Tensor], layout: BatchLayout
    ) -> bool:
        try:
            # Four forward passes: a part of a row says as much as all.
            part = excerpt(batch, layout, _LOOK_TOKENS)
            return watching_changes(attention, model, part, BatchLayout.of(part), self.ways)
        except Exception as error:
            # A rank that gives up a sharded pass leaves the others waiting inside of it.
            if is_sharded(model):
                raise
            LOG.warning(
                "ssToken: it could not be checked that watching attention changes nothing: %s.", in_short(error)
            )
            return False

    def _prove_separate(self, model: Any, batch: Mapping[str, Tensor]) -> None:
        """Show on the first packed batch that the samples of a row do not see each other."""
        see = samples_see_each_other(model, batch, self.ways)
        if see:
            packing = self.names.packing
            way_out = (
                f"set {packing}: false"
                if packing
                else "leave use_cache at False, or pad samples in place of packing them"
            )
            raise ValueError(
                f"{packing or 'data_collator'}: {class_name(model)} lets the samples of a packed row see each other, "
                f"and selection scores a sample as if alone; {way_out}."
            )
        self._is_separate = see is not None

    def do_without_attention(self, reason: str) -> None:
        """Give up measuring prompt attention, where nothing ranks by it.

        Raises:
            ValueError: something does.
        """
        if self.config.ranks_by_attention:
            raise ValueError(
                f"sstoken.selector: {self.config.selector} needs prompt attention, and {reason}; set sstoken.selector: "
                "rel and sstoken.warmup_selector: all, which do without."
            )
        LOG.warning("ssToken: prompt attention is not logged: %s.", reason)
        self.attention = None

    def score(
        self,
        phase: Phase,
        layout: BatchLayout,
        current: Tensor,
        history: Tensor | None,
        attention: Tensor | None,
    ) -> TokenScores:
        """Rank the response tokens by the phase's rule; all tensors float32 [R].

        Raises:
            ValueError: there is no selector of that name.
        """
        rel = None if history is None or self.history is None else self.history.rel(history, current)
        signals = Signals(
            current=current,
            history=history,
            rel=rel,
            attention=attention,
            sample=layout.sample,
            samples=len(layout.lengths),
            has_prompt=layout.has_prompt[layout.sample],
            index_in_sample=layout.index_in_sample,
            fingerprint=layout.fingerprint[layout.sample],
            seed=self.seed + phase.draw * 0x9E3779B9,
            gamma=phase.gamma,
        )
        score = selector_of(phase.rule).score(signals)
        return TokenScores(current, history, rel, attention, score)


class ScoredStep:
    """One step under way, see the module's example.

    Attributes:
        settings: the selection that this step belongs to.
        layout: the batch's response tokens.
        phase: what ranks.
        scores: the signals; set by `loss`.
        kept: bool [R], the tokens trained on; set by `loss`.
        turns: the turns of the response tokens.
        places: int64 [N], how many tokens each sample keeps; where a threshold decides, how many it may keep.
        cached_samples: samples whose history losses were found in the cache; None where nobody asked for any.
    """

    def __init__(
        self,
        settings: TokenSelection,
        model: Any,
        batch: Mapping[str, Tensor],
        layout: BatchLayout,
        phase: Phase,
        attention: PromptAttention | None = None,
        history_nll: Tensor | None = None,
        cached_samples: int | None = None,
    ):
        self.cached_samples = cached_samples
        self.layout = layout
        self.phase = phase
        self.scores: TokenScores
        self.kept: Tensor
        self.turns = Turns.of(batch, layout, settings.end_tokens)
        self.places = layout.lengths
        if not phase.keeps_everything:
            self.places = settings.kept_per_sample(layout, self.turns, phase.ratio)
        self.settings = settings
        self._prompt_attention = attention
        self._history_nll = history_nll
        self._model = model
        self._labels = labels_of(batch)
        self._own_loss = settings.own_loss or OwnLoss()
        self._head = ResponseHead(model, layout, settings.ways, settings.kernels)
        self._asked: list[bool] = []

    @contextmanager
    def observed(self, *, all_logits: bool = False) -> Iterator[None]:
        """Watch the forward pass inside the block; nothing stays behind after it.

        Args:
            all_logits: whether somebody else reads the logits, so that those of every token must be computed.
        """
        with ExitStack() as stack:
            if self._own_loss.adds:
                self._asked = stack.enter_context(added_only(self._model, self._labels))
            if not (all_logits or self._own_loss.reads_all_logits or self.phase.rule == "min_p"):
                stack.enter_context(self._head.narrowed())
            if self._prompt_attention is not None:
                stack.enter_context(self._prompt_attention.measure(self.layout.prompt))
            yield

    def loss(self, outputs: Any, labels: Any = None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Score the tokens, select, and return the mean loss of the kept ones, a scalar with gradient.

        The arguments are those of transformers' `compute_loss_func`.

        Args:
            outputs: the model's output for the forward pass inside `observed`.
            labels: not read, `begin` has them.
            num_items_in_batch: kept tokens of the whole optimizer step, or where a threshold decides all response
                tokens; None for the mean over this batch.
        """
        layout, phase, settings = self.layout, self.phase, self.settings
        # A batch without response tokens gives 0 here, with a graph: every rank must run its backward pass.
        nll = self._head.nll(outputs["logits"])
        current = nll.detach()
        if phase.rule == "min_p":
            rows = outputs["logits"].detach().flatten(0, 1)[layout.logit_position].float()
            current = current + torch.log_softmax(rows, -1).max(-1).values
        self.scores = settings.score(phase, layout, current, self._history_nll, self._attention())
        ends = self.turns.ends if settings.config.keep_eos else None
        if phase.keeps_everything:
            self.kept = torch.ones_like(layout.position, dtype=torch.bool)
        elif phase.rule.startswith("soft_"):
            self.kept = torch.ones_like(layout.position, dtype=torch.bool)
            weight = self.scores.score.masked_fill(~torch.isfinite(self.scores.score), 0)
            if ends is not None:
                weight = torch.where(ends, 1, weight)
            num_items_in_batch = max(1, len(layout.position)) if num_items_in_batch is None else num_items_in_batch
            nll = weight * nll
        elif phase.least is not None:
            self.kept = selection.keep_above(self.scores.score, phase.least, ends)
            # How many those are is known too late to be counted over micro-batches and ranks: all response tokens are.
            num_items_in_batch = max(1, len(layout.position)) if num_items_in_batch is None else num_items_in_batch
        else:
            self.kept = selection.keep_top(self.scores.score, layout.sample, self.places, ends)
        loss = mean_kept(nll, self.kept, num_items_in_batch)
        return loss + self._added(outputs) if self._own_loss.adds else loss

    def _added(self, outputs: Any) -> Tensor:
        if not self._asked:
            raise RuntimeError(
                f"{class_name(self._model)} adds to its loss (output_router_logits, say), and its forward pass was "
                "replaced by one that computes the whole loss at once; remove keys that fuse the output head with the "
                f"loss, such as {self.settings.names.fused_losses}."
            )
        added: Tensor = outputs["loss"]
        return added * self.settings.added_share

    def _attention(self) -> Tensor | None:
        probe = self._prompt_attention
        if probe is None:
            return None
        if probe.mass is None:
            self.settings.do_without_attention(probe.why_not)
            return None
        return probe.mass.flatten()[self.layout.position]
