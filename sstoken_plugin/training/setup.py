"""Builds the selection for a loaded model, and says in one sentence what it will do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import SchedulerType, TrainingArguments

from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.numbers import percent
from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.output_head import ProvenWays
from sstoken_plugin.engine.own_loss import OwnLoss
from sstoken_plugin.engine.past import PastLosses
from sstoken_plugin.engine.run import Names, Run
from sstoken_plugin.engine.step import TokenSelection
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.selectors import selector_of
from sstoken_plugin.selection.turns import EndTokens
from sstoken_plugin.training.survey import Survey, refuse_rows

LOG = logger(__name__)

# What vocabularies write for white space: byte-level ones, SentencePiece's, and those with a token for each byte.
_BLANK_PIECE = re.compile(r"[\sĠĊĉčĈÂł▁]+|<0x(09|0A|0D|20)>")

# Schedules of the learning rate that have no warm-up, whatever the settings say.
_NO_WARMUP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU)
# Between the share that is kept and `ratio`: what nobody wonders about.
_ROUNDING = 0.005


@dataclass(frozen=True)
class Look:
    """What a look at the prepared data has shown.

    Attributes:
        ends: what can end a turn, and what does in the data.
        survey: the rest; None if the data is of a kind that is not looked at.
    """

    ends: EndTokens
    survey: Survey | None = None


def build_selection(
    config: SSTokenConfig,
    run: Run,
    model: Any,
    history: HistoryLosses | None,
    look: Look,
) -> TokenSelection:
    """Build the selection for an unwrapped model.

    Signals that do not rank are measured too where that costs no memory, so that every selector logs the
    same metrics and runs compare.

    Args:
        config: the settings.
        run: the facts of the run.
        model: the unwrapped model, with its adapter. It is not changed.
        history: see `build_history`.
        look: what the data has shown.

    Raises:
        ValueError: the model does not allow what the settings ask for; one sentence with key and fix.
    """
    attention = None
    try:
        attention = PromptAttention.of(model, config.attention_layer)
    except ValueError as reason:
        if config.ranks_by_attention:
            raise
        LOG.warning("ssToken: prompt attention is not logged: %s", reason)
    if history is None:
        LOG.warning("ssToken: REL is not logged: nothing ranks by it, and its history would cost memory.")
    # One for both, because a history that is the model itself has the same head.
    ways = ProvenWays() if history is None else history.ways
    own_loss = OwnLoss.of(model, run.names, ways)
    if own_loss.reads_all_logits:
        LOG.info("ssToken: what the model adds to its loss is computed from all logits, which costs time and memory.")
    selection = TokenSelection(config, attention, history, look.ends, run.seed, run.kernels, own_loss, run.names, ways)
    selection.kept_share = None if look.survey is None else look.survey.kept_share(config)
    return selection


def refuse_spread(model: Any) -> None:
    """Refuse a model whose layers one process has put on several accelerators, as `device_map="auto"` does.

    Raises:
        ValueError: it is; one sentence with the way out.
    """
    devices = {
        str(parameter.device) for parameter in model.parameters() if parameter.device.type not in ("cpu", "meta")
    }
    if len(devices) > 1:
        raise ValueError(
            f"device_map: the model is spread over {' and '.join(sorted(devices))}, and selection needs its layers on "
            "one; start a process for each GPU with accelerate launch or torchrun, or name one in CUDA_VISIBLE_DEVICES."
        )


def look_at_data(samples: Any, run: Run, model: Any, tokenizer: Any) -> Look:
    """Look at the prepared data, warn of what may not be meant, and return what was seen.

    Raises:
        ValueError: the data cannot be trained on rightly; one sentence with key and fix.
    """
    if not run.rows_are_packed:
        refuse_rows(samples, packed=run.packs, names=run.names)
    ends = end_tokens(run, model, tokenizer)
    found = Survey.of(samples, ends)
    if found is None:
        return Look(ends)
    for sentence in found.warnings(run.names):
        LOG.warning(sentence)
    return Look(replace(ends, in_data=found.ends), found)


def end_tokens(run: Run, model: Any, tokenizer: Any) -> EndTokens:
    """Return the tokens that can end a turn: those of the tokenizer, the model and the run."""

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    generation = getattr(model, "generation_config", None)
    declared = getattr(generation, "eos_token_id", None)
    declared = declared if isinstance(declared, (list, tuple)) else [declared]
    # A model's configuration may be older than the tokenizer: there the id is an ordinary token, or none.
    special = set(tokenizer.all_special_ids)
    # Tokenizers of mistral-common have no such list.
    if isinstance(added := getattr(tokenizer, "added_tokens_decoder", None), Mapping):
        special.update(token for token, kind in added.items() if kind.special)
    ids = {tokenizer.eos_token_id, *(special & set(declared))}
    for text in run.eot_tokens:
        # Axolotl, too, takes no others for ends.
        if len(found := encoded(text)) == 1:
            ids.update(found)
    # What may stand behind the end of a turn.
    blank = {
        token
        for piece, token in tokenizer.get_vocab().items()
        if _BLANK_PIECE.fullmatch(str(piece)) and not tokenizer.decode([token]).strip()
    }
    return EndTokens(frozenset(ids - {None}), frozenset(blank))


def describe(selection: TokenSelection, tokenizer: Any) -> str:
    """Return the start-up sentence: what is selected, by which signals, against which history."""
    config = selection.config
    row = selector_of(config.selector)
    text = row.in_words(config.gamma, selection.seed, config.min_probability)
    if not row.reads_ratio:
        text = f"it trains on {text}"
    else:
        text = f"it trains on {100 * config.ratio:g}% of each sample's response tokens, the best by {text}"
    if config.has_warmup:
        warmup = selector_of(config.warmup_selector).warmup
        text += f" (in the first {100 * config.warmup_ratio:g}% of the optimizer steps {warmup})"
    parts = [f"ssToken is active: {text}"]
    if selection.history is not None:
        parts.append(f"REL compares with {describe_history(selection.history)}")
    if selection.attention is not None:
        parts.append(f"prompt attention is that of {selection.attention.description}")
    ends = selection.end_tokens
    found = ends.ids if ends.in_data is None else ends.in_data
    if config.keep_eos and not row.keeps_all and found:
        names = " ".join(tokenizer.convert_ids_to_tokens(sorted(found)))
        parts.append(f"the end of a turn ({names}) is always kept")
    if share := explain_share(selection):
        parts.append(share)
    if selection.own_loss is not None and selection.own_loss.adds:
        parts.append("what the model adds to its loss, such as losses of routers, is added as usual")
    return "; ".join(parts) + "."


def explain_share(selection: TokenSelection) -> str:
    """Return why the data keeps another share of its tokens than `ratio`, as a sentence without its stop.

    It is "" where that share is not known, or rounds to `ratio`.
    """
    config, share = selection.config, selection.kept_share
    if share is None or not selector_of(config.selector).reads_ratio or abs(share - config.ratio) < _ROUNDING:
        return ""
    places = "at least two for each end of a turn (keep_eos), and " if config.keep_eos else ""
    return (
        f"ratio: {config.ratio:g} comes to {percent(share, 1)} of the response tokens in this data, because each "
        f"sample keeps {places}a whole number of tokens, rounded up, which counts where answers are short"
    )


def describe_warmups(config: SSTokenConfig, names: Names, args: TrainingArguments, steps: int) -> str:
    """Return the sentence that tells the warm-up of the selection from that of the learning rate.

    It is "" where one of them is not there.

    Args:
        config: the settings.
        names: how users call that of the learning rate.
        args: of the trainer.
        steps: optimizer steps of the run.
    """
    of_rate = 0 if args.lr_scheduler_type in _NO_WARMUP else args.get_warmup_steps(steps)
    if not of_rate or not config.has_warmup:
        return ""
    row = selector_of(config.warmup_selector)
    return (
        f"ssToken: there are two warm-ups: {names.rate_warmup} of {names.trainer} is that of the learning rate, which "
        f"rises over {of_rate} of {steps} optimizer steps; sstoken.warmup_ratio is that of the selection, which takes "
        f"{row.warmup} in the first {config.warmup_steps(steps)}."
    )


def vocabulary_size(model: Any, tokenizer: Any) -> int:
    """Return a bound above every token id."""
    size: int = model.config.get_text_config().vocab_size
    return max(len(tokenizer), size)


def describe_history(losses: PastLosses) -> str:
    """Name the history that REL compares with, and what it costs."""
    kept = (
        "" if losses.store is None else f"losses are cached in {losses.store.file}, {len(losses.store)} samples so far"
    )
    history = losses.history
    if history is None:
        return f"a history that need not be held in memory ({kept}: all that this data set needs)"
    costs = "no memory"
    if history.memory:
        costs = f"{history.memory / 2**20:.1f} MiB of memory on {history.device}"
    return f"{history.description}, which takes {costs}" + (f" ({kept})" if kept else "")
