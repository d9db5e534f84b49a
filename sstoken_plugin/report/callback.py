"""The page of a training: it watches a trainer, which does not know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from sstoken_plugin.base.attempt import attempt
from sstoken_plugin.base.logs import announce, logger
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.engine.run import Run
from sstoken_plugin.report.assembly import facts_of, report_of, write_page
from sstoken_plugin.report.breakdown import KeptCounts
from sstoken_plugin.report.content import Breakdown, Report
from sstoken_plugin.report.page_data import FILE, PageData, training_of, write_page_data
from sstoken_plugin.report.parts import CountsPart, MomentsPart, PagePart, total_counts
from sstoken_plugin.report.token_table import rows_of
from sstoken_plugin.report.trackers import Trackers
from sstoken_plugin.report.trajectory import Trajectory
from sstoken_plugin.training.session import Session
from sstoken_plugin.training.setup import vocabulary_size

LOG = logger(__name__)


class ReportCallback(TrainerCallback):
    """Scores samples during the training and writes OUTPUT_DIR/sstoken/report.html when it ends.

    Every rank takes part. The trained weights are not saved yet at any of these moments: no picture is worth losing
    them, so that what fails here is said and left out. What ranks do together is not done where errors are swallowed:
    a rank that failed would leave the others waiting.

    Args:
        trainer: the trainer.
        session: its selection.
        run: the facts of its run.
        trackers: get the page and a table of its tokens, if the settings let them.

    Attributes:
        trajectory: scores samples at moments of the run.
        kept_counts: counts what is kept over the data.
    """

    def __init__(self, trainer: Trainer, session: Session, run: Run, trackers: Trackers):
        self.trajectory = Trajectory(session)
        self.kept_counts = KeptCounts(session.tokenizer, vocabulary_size(trainer.model, session.tokenizer))
        self._trainer = trainer
        self._session = session
        self._run = run
        self._trackers = trackers
        self._finished = False

    def counts_of_kept(self) -> Tensor | None:
        """Return counts of what was kept over the data, see `KeptCounts`; every rank must call this."""
        return total_counts(self.kept_counts, self._session)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say where the page will be."""
        self._finished = False
        if not state.is_world_process_zero:
            return
        try:
            _file(args).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            LOG.warning("ssToken: output_dir: there will be no page, because its folder cannot be made (%s).",
                        in_short(error))  # fmt: skip
        else:
            announce("ssToken: what is selected will be shown in %s.", _file(args))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score samples at planned moments, and after the last step while trackers still listen."""
        if state.global_step >= state.max_steps:
            self._finish(state)
        else:
            self.trajectory.after_step(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take away what an earlier run in this folder left to be drawn again: a checkpoint of this one is there now.

        Not before, so that a run that ends before its first checkpoint costs nothing; and the earlier page stays until
        the new one is written.
        """
        if state.is_world_process_zero:
            file = _file(args).with_name(FILE)
            attempt(f"{file} is of an earlier run and stays", lambda: file.unlink(missing_ok=True))

    def end(self, args: Any, state: Any) -> None:
        """Draw the page, and give it to the trackers; every rank must call this."""
        # Since the last step Trainer may have loaded its best checkpoint.
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        self._finish(state, best)
        counts = self.counts_of_kept()
        if not state.is_world_process_zero:
            return
        file = _file(args)
        if attempt(f"{file} was not written", lambda: self._draw(file, state, counts)) and self._uploads:
            self._trackers.give("the page", lambda tracker: tracker.add_page(file, state.global_step))

    @property
    def _uploads(self) -> bool:
        return self._session.config.report_upload

    def _finish(self, state: Any, best: str | None = None) -> None:
        if self._finished:
            return
        self._finished = True
        self.trajectory.finish(state.global_step, state.max_steps, best)
        if state.is_world_process_zero and self.trajectory.moments and self._uploads:
            rows = attempt("no table of tokens was logged", lambda: rows_of(self.trajectory.moments[-1].records))
            if rows:
                self._trackers.give("the table of tokens", lambda tracker: tracker.add_table(rows, state.global_step))

    def _draw(self, file: Path, state: Any, counts: Tensor | None) -> bool:
        session = self._session
        assert session.selection is not None
        tables: list[Breakdown] = []
        if counts is not None:
            attempt("the page has no tables", lambda: tables.extend(self.kept_counts.tables(counts)))
        report = report_of(
            session.selection,
            session.tokenizer,
            self.trajectory.moments,
            tables,
            facts_of(self._run, session.model, session.samples, steps=state.global_step),
            log=state.log_history,
            warnings=session.warnings,
        )
        # First, so that a page that cannot be drawn here can be drawn elsewhere.
        attempt("the page cannot be drawn again", lambda: self._keep(report, file.with_name(FILE)))
        write_page(file, report)
        announce("ssToken: what was selected is shown in %s; %s.", file, self.trajectory.cost)
        return True

    def _keep(self, report: Report, file: Path) -> None:
        write_page_data(PageData(report, training_of(self._trainer)), file)


class _BeforeTrackersClose(TrainerCallback):
    """The end of the page, heard of before trackers hear of the end of the training and close their runs."""

    def __init__(self, report: ReportCallback):
        self._report = report

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the page."""
        self._report.end(args, state)


def watch(trainer: Any, run: Run, trackers: Trackers) -> ReportCallback:
    """Let a page be written of what a trainer selects.

    Args:
        trainer: a trainer with a selection, before `train()`.
        run: the facts of its run.
        trackers: those it reports to.

    Returns:
        The callback that is added to it.
    """
    session: Session = trainer.sstoken
    report = ReportCallback(trainer, session, run, trackers)
    session.watchers.append(report.kept_counts.add)
    session.parts += [
        MomentsPart(report.trajectory),
        CountsPart(report.kept_counts, session),
        PagePart(trainer, session, run, report.trajectory),
    ]
    trainer.add_callback(report)
    # A list of its own: somebody may be going through the one that is there, as where a callback attaches.
    callbacks = trainer.callback_handler.callbacks
    trainer.callback_handler.callbacks = [_BeforeTrackersClose(report), *callbacks]
    return report


def _file(args: Any) -> Path:
    # A log is read from elsewhere, too.
    return Path(args.output_dir).absolute() / "sstoken" / "report.html"
