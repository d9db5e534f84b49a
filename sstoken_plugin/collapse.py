"""Tells a user early that the selection has gone wrong, by two signs.

Both hazards were seen in toy runs: REL can rank noise first where the base model already knows the answer,
so that what is dropped is unlearned; and attention can be nothing but a score of position.
"""

from __future__ import annotations

from sstoken_plugin.step import Rule

# Log lines that are averaged on either side of the comparison.
WINDOW = 5
# Dropped tokens cost this much more than at their start: in nats, and as a factor.
RUNAWAY_NATS = 0.5
RUNAWAY_FACTOR = 1.25
# Share of kept tokens (end-of-turn tokens aside) that are among the first k of their sample.
LEADING_SHARE = 0.98


class CollapseMonitor:
    """Watches the logged metrics of a run and raises each warning once.

    A change of the rule (the end of the warm-up) changes what is dropped, so the watch starts anew there.
    """

    def __init__(self) -> None:
        self._rule: Rule | None = None
        self._dropped: list[float] = []
        self._leading: list[float] = []
        self._raised: set[tuple[Rule, str]] = set()

    def observe(self, rule: Rule, metrics: dict[str, float], leading: float | None) -> list[str]:
        """Take in one log line and return the warnings that it gives rise to.

        Args:
            rule: what ranked the tokens.
            metrics: the logged numbers.
            leading: share of kept tokens that are among the first k of their sample; None if unknown.
        """
        if rule != self._rule:
            self._rule, self._dropped, self._leading = rule, [], []
        warnings = []
        if "sstoken/loss_unselected" in metrics:
            self._dropped.append(metrics["sstoken/loss_unselected"])
        if len(self._dropped) >= 2 * WINDOW:
            start, now = _mean(self._dropped[:WINDOW]), _mean(self._dropped[-WINDOW:])
            if now > start + RUNAWAY_NATS and now > start * RUNAWAY_FACTOR:
                warnings += self._once(
                    "runaway",
                    f"the loss on dropped tokens rose from {start:.2f} to {now:.2f}: the model unlearns what is not "
                    "selected. Compare with sstoken.selector: all, raise sstoken.ratio or lower sstoken.gamma.",
                )
        if leading is not None and metrics.get("sstoken/selected_ratio", 1) < 1 and rule != "position":
            self._leading.append(leading)
        if len(self._leading) >= WINDOW and _mean(self._leading[-WINDOW:]) > LEADING_SHARE:
            warnings += self._once(
                "position",
                f"{_mean(self._leading[-WINDOW:]):.0%} of the kept tokens are the first tokens of their response: "
                "the selection is a score of position. Try another sstoken.attention_layer or a higher "
                "sstoken.gamma.",
            )
        return warnings

    def _once(self, sign: str, text: str) -> list[str]:
        assert self._rule is not None
        if (self._rule, sign) in self._raised:
            return []
        self._raised.add((self._rule, sign))
        return [f"ssToken: {text}"]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
