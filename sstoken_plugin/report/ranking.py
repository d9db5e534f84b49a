"""What ranked the tokens that a page shows, in its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sstoken_plugin.report.content import Report
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.selectors import SELECTORS, Selector


@dataclass(frozen=True)
class Ranking:
    """What ranked tokens at one time of a run.

    Attributes:
        rule: the name of a selector, which may be none that this release knows.
        gamma: weight of REL in the score then, 0 to 1.
        config: the settings; None where this release does not take them.
    """

    rule: str
    gamma: float
    config: SSTokenConfig | None

    @classmethod
    def of_counted(cls, report: Report) -> Ranking:
        """Return what ranked the tokens of the tables, or else those of the last moment."""
        config, last = config_of(report.settings), report.moments[-1] if report.moments else None
        counted = next((table.rule for table in report.breakdowns if table.rule), "")
        rule = counted or (last.rule if last else str(report.settings.get("selector")))
        if last and last.rule == rule:
            return cls(rule, last.gamma, config)
        return cls(rule, (config or SSTokenConfig()).gamma, config)

    @property
    def row(self) -> Selector | None:
        """The selector; None if this release has none of that name."""
        return SELECTORS.get(self.rule)

    @property
    def is_warmup(self) -> bool:
        """Whether that was in the warm-up of the selection."""
        return self.config is not None and self.config.has_warmup and self.rule == self.config.warmup_selector

    @property
    def follows_warmup(self) -> bool:
        """Whether that was after a warm-up of the selection."""
        return self.config is not None and self.config.has_warmup and self.rule == self.config.selector

    @property
    def keeps_everything(self) -> bool:
        """Whether no token was dropped, so that it was plain training."""
        if self.row is None:
            return False
        return self.row.keeps_all or (self.row.reads_ratio and self.config is not None and self.config.ratio == 1)

    @property
    def is_threshold(self) -> bool:
        """Whether a threshold decided which tokens were kept."""
        return self.row is not None and self.row.is_threshold

    @property
    def words(self) -> str:
        """Words that end "ranked by ..."."""
        if self.row is None:
            return self.rule
        config = self.config or SSTokenConfig()
        ends = ", and the ends of turns" if self.is_threshold and config.keep_eos else ""
        return f"{self.row.on_page(self.gamma, config.min_probability)}{ends}"


def config_of(settings: Mapping[str, Any]) -> SSTokenConfig | None:
    """Return the settings of a page; None where this release does not take them, as with a page of an older one."""
    try:
        return SSTokenConfig.from_block(settings)
    except ValueError:
        return None
