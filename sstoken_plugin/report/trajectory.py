"""The same samples scored at several moments of a training run, at a small share of its time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sstoken_plugin.base.attempt import attempt
from sstoken_plugin.base.logs import announce, logger
from sstoken_plugin.base.numbers import counted
from sstoken_plugin.engine.sharding import is_sharded
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.report import Moment
from sstoken_plugin.report.content import Record
from sstoken_plugin.report.inspection import records_of, score_samples
from sstoken_plugin.selection.samples import BatchLayout, as_batch, samples_in
from sstoken_plugin.training.session import Session

LOG = logger(__name__)

# Where the settings name no time: of the run's, but for this many seconds, which a short run may spend too.
SHARE, LEAST_SECONDS = 0.01, 5.0
MOST_MOMENTS = 9
# Samples that are scored at once, and their tokens, unless one alone has more.
GROUP, GROUP_TOKENS = 4, 512
# Tokens of a sample, in the mean over all that are asked for: what is scored is held until the end, and in checkpoints.
MEAN_TOKENS = 700


class Trajectory:
    """Scores samples as the model in training would select from them next, and says how long it took.

    The first moment, after a step whose time is known, decides how many samples the run can afford; later ones are
    left out where they would cost more. However few they are, they come from all over the data set. Every rank takes
    part, and all decide alike: where scoring fails on one, all go on without.

    Args:
        session: of the trainer whose model and data set are looked at.

    Attributes:
        moments: those taken so far; each has its samples in the order in which they were scored.
        seconds: spent on them in this process.
        left_out: planned moments for which no time was left, in this process.
    """

    def __init__(self, session: Session):
        self._session = session
        self.restart()

    def restart(self) -> None:
        """Begin with no moment, as at the start of a training."""
        self.moments: list[Moment] = []
        self._samples: list[Any] = []
        self._first_step = 0
        self._began = self._last = 0.0
        self._failed = False
        self._loaded = ""
        self.seconds = 0.0
        self.left_out = 0

    def after_step(self, step: int, steps: int) -> None:
        """Score the samples if this moment is planned and the run can afford it.

        Args:
            step: of the run, from 1.
            steps: of the whole run.
        """
        if self._failed:
            return
        if not self._began:
            self._began, self._first_step = time.perf_counter(), step
            self._go_on()
        elif self._is_planned(step, steps):
            allowed, phase = self._agreed(self._allowed(step, steps)), self._session.phase_now
            if not self._samples:
                self._take_first(step, steps, phase, allowed / MOST_MOMENTS)
            # Room is left for the end of the run, which is always scored.
            elif self._agreed(self.seconds + 2 * self._last) <= allowed:
                self._take(step, steps, phase)
            else:
                self.left_out += 1

    def finish(self, step: int, steps: int, best: str | None = None) -> None:
        """Score the samples with the trained model, by the rule that the settings name for the end of the run.

        Args:
            step: of the run, from 1.
            steps: of the whole run.
            best: the checkpoint that was loaded because it is the best one; None for the weights of the last step.
        """
        self._loaded = f"the best model ({Path(best).name}) at " if best else ""
        # What failed before may have been passing.
        self._failed = False
        if not self._samples:
            self._go_on()
        phase = Phase.at_end(self._selection.config)
        if self._samples and self.moments:
            self._take(step, steps, phase)
        else:
            seconds = LEAST_SECONDS if self._given is None else self._given
            self._take_first(step, steps, phase, seconds / MOST_MOMENTS)

    @property
    def _given(self) -> float | None:
        """The seconds that the settings give to scoring; None if they name none."""
        return self._session.config.report_seconds

    @property
    def cost(self) -> str:
        """What scoring has cost, in words."""
        text = f"scoring samples for it took {self.seconds:.1f} s"
        if self.left_out:
            text += f", and sstoken.report_seconds left no time for {self.left_out} of the planned moments"
        return text

    @property
    def _selection(self) -> TokenSelection:
        assert self._session.selection is not None
        return self._session.selection

    def _is_planned(self, step: int, steps: int) -> bool:
        if step >= steps:
            return False
        part = steps / (MOST_MOMENTS - 1)
        return not self.moments or int(step / part) > int((step - 1) / part)

    def _allowed(self, step: int, steps: int) -> float:
        """Return the seconds that scoring may take in this run."""
        if self._given is not None:
            return self._given
        each = (time.perf_counter() - self._began - self.seconds) / max(step - self._first_step, 1)
        return max(LEAST_SECONDS, SHARE * each * steps)

    def _go_on(self) -> None:
        """Find the samples of the moments that a checkpoint held; without those, its moments are dropped."""
        found = attempt("the samples of the checkpoint were not found", self._of_checkpoint)
        if self._session.any_rank(not found):
            if self.moments and self._session.is_first_rank:
                LOG.warning("ssToken: the page begins anew: the checkpoint's samples are not those of this data set.")
            self.moments.clear()
        else:
            self._samples = found or []

    def _take_first(self, step: int, steps: int, phase: Phase, seconds: float) -> None:
        """Score samples, as many as can be in this time."""
        start = time.perf_counter()
        self._samples = []
        records: list[Record] = []
        candidates = attempt("no samples were found to score", lambda: list(self._candidates())) or []
        if self._session.any_rank(not candidates):
            self._failed = True
            return
        tokens, limit = 0, ""
        for group in _groups(candidates):
            tokens += sum(len(sample["input_ids"]) for sample in group)
            if records and tokens > MEAN_TOKENS * self._session.config.report_samples:
                limit = "they are long"
            elif records and self._agreed(time.perf_counter() - start) > seconds:
                limit = "more would take longer than sstoken.report_seconds allows"
            if limit:
                break
            scored = self._score(group, phase, ())
            if scored is None:
                return
            self._samples += group
            records += scored
        self._add(step, steps, phase, records, start, f" (of {len(candidates)}: {limit})" if limit else "")

    def _take(self, step: int, steps: int, phase: Phase) -> None:
        start = time.perf_counter()
        before = self.moments[0].records
        records: list[Record] = []
        # In the batches of the first moment: numbers that do not change are the same to the last bit.
        for group in _groups(self._samples):
            scored = self._score(group, phase, before[len(records) : len(records) + len(group)])
            if scored is None:
                return
            records += scored
        self._add(step, steps, phase, records, start)

    def _add(self, step: int, steps: int, phase: Phase, records: list[Record], start: float, limit: str = "") -> None:
        self.moments.append(
            Moment(f"{self._loaded}step {step} of {steps}", phase.rule, phase.gamma, phase.ratio, records)
        )
        self._last = time.perf_counter() - start
        self.seconds += self._last
        if self._session.is_first_rank:
            announce(
                "ssToken: scored %s%s for the page at step %d of %d: %.1f s.",
                counted(len(records), "sample"), limit, step, steps, self._last,
            )  # fmt: skip

    def _score(self, samples: Sequence[Any], phase: Phase, known: Sequence[Record]) -> list[Record] | None:
        """Return a record for each sample; None, on every rank, where it fails on any."""
        selection, tokenizer, model = self._selection, self._session.tokenizer, self._session.model
        # A rank that gives up a sharded pass leaves the others waiting inside of it: such an error ends the run.
        done = list(score_samples(selection, model, samples, phase, known)) if is_sharded(model) else None

        def scored() -> list[Record]:
            found: list[Record] = []
            for rows, step in done or score_samples(selection, model, samples, phase, known):
                found += records_of(step, rows, tokenizer, known[len(found) : len(found) + len(rows)])
            return found

        records = attempt("samples were not scored", scored)
        if self._session.any_rank(records is None):
            self._failed = True
            return None
        return [{**record, "sample": sample["sample"]} for record, sample in zip(records or [], samples, strict=True)]

    def _candidates(self) -> Iterator[dict[str, Any]]:
        data: Any = self._session.samples
        most = self._session.config.report_samples
        if not hasattr(data, "__len__"):
            yield from (_first_of(row, index) for index, row in enumerate(islice(data, most)))
        else:
            yield from (_first_of(data[index], index) for index in spread_over(len(data), most))

    def _of_checkpoint(self) -> list[dict[str, Any]]:
        if not self.moments:
            return []
        data: Any = self._session.samples
        records = self.moments[0].records
        if hasattr(data, "__len__") and max(record["sample"] for record in records) < len(data):
            found = [_first_of(data[record["sample"]], record["sample"]) for record in records]
            tokens = (as_batch(sample)["input_ids"][0].tolist() for sample in found)
            if all(own == record["input_ids"] for own, record in zip(tokens, records, strict=True)):
                return found
        return []

    def _agreed(self, value: float) -> float:
        return self._session.of_first_rank(value)


def _first_of(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a row of the data set with its number; of a packed one its first sample that has a response."""
    parts = samples_in(row)
    if len(parts) == 1:
        return {**row, "sample": index}
    part = next((part for part in parts if len(BatchLayout.of(part).position)), parts[0])
    return {**{name: column[0].tolist() for name, column in part.items()}, "sample": index}


def _groups(samples: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    """Split samples into those that are scored at once; it follows from their lengths, so that it repeats."""
    group: list[Any] = []
    tokens = 0
    for sample in samples:
        length = len(sample["input_ids"])
        if group and (len(group) == GROUP or tokens + length > GROUP_TOKENS):
            yield group
            group, tokens = [], 0
        group.append(sample)
        tokens += length
    if group:
        yield group


def spread_over(total: int, most: int) -> Sequence[int]:
    """Return up to `most` indices below `total`, as far apart as can be, and so in an order that any first of them are.

    The order is that of van der Corput: 0, the half, the quarters, the eighths.
    """
    count = min(total, most)
    bits = max(count - 1, 0).bit_length()
    halved = (int(f"{place:0{bits}b}"[::-1], 2) for place in range(1 << bits))
    return [slot * total // count for slot in dict.fromkeys(place * count >> bits for place in halved)] if count else []
