"""Tells a user, once for each sign, that the selection meets odd data or has gone wrong.

Two hazards were seen in toy runs: REL can rank noise first where the base model already knows the answer, so
that what is dropped is unlearned; and attention can be nothing but a score of position.
"""

from __future__ import annotations

from typing import Any

from sstoken_plugin.base.numbers import percent
from sstoken_plugin.selection.selectors import SELECTORS, selector_of
from sstoken_plugin.training.metrics import INTERNAL, METRICS, ratios

# Log lines that are averaged on either side of the comparison.
WINDOW = 5
# Dropped tokens cost this much more than at their start: in nats, and as a factor.
RUNAWAY_NATS = 0.5
RUNAWAY_FACTOR = 1.25
# Share of kept tokens (end-of-turn tokens aside) that are among the first k of their sample.
LEADING_SHARE = 0.98
# Of the response tokens; with more, means of the others say nothing about the selection.
NOT_FINITE_SHARE = 0.01


class SelectionMonitor:
    """Watches the counts of a run, log line by log line.

    A change of the rule (the end of the warm-up) changes what is dropped, so the watch for a collapse starts
    anew there.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._rule: str | None = None
        self._dropped: list[float] = []
        self._leading: list[float] = []
        self._raised: set[str] = set()

    def observe(self, rule: str, total: dict[str, float]) -> list[str]:
        """Take in the counts of one log line and return the warnings that they give rise to.

        Args:
            rule: what ranked the tokens: the name of a selector.
            total: the counts since the last line, see `metrics.counts`.
        """
        if rule != self._rule:
            self._rule, self._dropped, self._leading = rule, [], []
        return [
            f"ssToken: {text}"
            for sign, text in (*self._odd_data(rule, total), *self._collapse(rule, total))
            if self._is_new(sign)
        ]

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on, in JSON's types."""
        return {
            "rule": self._rule,
            "dropped": self._dropped,
            "leading": self._leading,
            "raised": sorted(self._raised),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            ValueError: it is none.
        """
        numbers = [state.get(name) for name in ("dropped", "leading")]
        raised = state.get("raised")
        if not (
            "rule" in state
            and state["rule"] in (None, *SELECTORS)
            and all(isinstance(some, list) and all(map(_is_number, some)) for some in numbers)
            and isinstance(raised, list)
            and all(isinstance(sign, str) for sign in raised)
        ):
            raise ValueError("it holds other things than are watched")
        self._rule, self._dropped, self._leading = state["rule"], state["dropped"], state["leading"]
        self._raised = set(raised)

    def _is_new(self, sign: str) -> bool:
        known = sign in self._raised
        self._raised.add(sign)
        return not known

    def _odd_data(self, rule: str, total: dict[str, float]) -> list[tuple[str, str]]:
        found = []
        if total["promptless_samples"] and "attention" in selector_of(rule).needs:
            # Wherever attention ranks, REL is measured for such samples if it can be.
            decides = "REL alone decides there" if total["rel_tokens"] else "the first tokens are kept there"
            found.append(
                (
                    "no prompt",
                    f"{total['promptless_samples']:.0f} of {total['samples']:.0f} samples have no prompt, so prompt "
                    f"attention says nothing: {decides}.",
                )
            )
        lower = "unless those samples are wrong, lower sstoken.min_probability or raise sstoken.warmup_ratio"
        if total["nothing_samples"]:
            # With a ratio, each sample keeps one token at least.
            found.append(
                (
                    "nothing",
                    f"{total['nothing_samples']:.0f} of {total['samples']:.0f} samples kept no token at all, so that "
                    f"nothing was learned from them; {lower}.",
                )
            )
        if total["only_ends_samples"]:
            fix = "set sstoken.keep_eos: true, which then keeps as many other tokens, or raise sstoken.ratio"
            if selector_of(rule).is_threshold:
                fix = lower
            found.append(
                (
                    "only ends",
                    f"{total['only_ends_samples']:.0f} of {total['samples']:.0f} samples kept the end of a turn and no "
                    f"word of it; {fix}.",
                )
            )
        if total["non_finite"]:
            found.append(
                (
                    "not finite",
                    f"{total['non_finite']:.0f} tokens have a loss or a REL that is not finite; they rank last, "
                    "except for ends of turns. Where the loss of a whole step is not finite, the trainer logs 0 or the "
                    "mean of the steps before it as `loss`. Check the learning rate and the precision if this goes on.",
                )
            )
        return found

    def _collapse(self, rule: str, total: dict[str, float]) -> list[tuple[str, str]]:
        if total["non_finite"] > NOT_FINITE_SHARE * total["response"]:
            return []
        found = []
        logged = ratios(total, METRICS)
        if "sstoken/loss_unselected" in logged:
            self._dropped.append(logged["sstoken/loss_unselected"])
            # The first and the last: every checkpoint holds them.
            del self._dropped[WINDOW:-WINDOW]
        if len(self._dropped) >= 2 * WINDOW:
            start, now = _mean(self._dropped[:WINDOW]), _mean(self._dropped[-WINDOW:])
            if now > start + RUNAWAY_NATS and now > start * RUNAWAY_FACTOR:
                others = "raise sstoken.ratio or lower sstoken.gamma"
                if selector_of(rule).is_threshold:
                    others = "lower sstoken.min_probability"
                found.append(
                    (
                        f"runaway under {rule}",
                        f"the loss on dropped tokens rose from {start:.2f} to {now:.2f}: the model unlearns what is "
                        f"not selected. Compare with sstoken.selector: all, or {others}.",
                    )
                )
        row = selector_of(rule)
        # Of a response that is kept nearly whole, nearly all of its first tokens are kept.
        if logged.get("sstoken/selected_ratio", 1) < 1 and not (row.is_position or row.is_threshold):
            self._leading += ratios(total, INTERNAL).values()
            del self._leading[:-WINDOW]
        if len(self._leading) >= WINDOW and _mean(self._leading) > LEADING_SHARE:
            found.append(
                (
                    f"position under {rule}",
                    f"{percent(_mean(self._leading))} of the kept tokens are the first tokens of their response: "
                    "the selection is a score of position. Try another sstoken.attention_layer or a higher "
                    "sstoken.gamma.",
                )
            )
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and -1e30 < value < 1e30


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
