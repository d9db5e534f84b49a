"""`axolotl sstoken-inspect`: what a run would select, with its model as it is, with an adapter, or some steps later."""

from __future__ import annotations

import errno
import gc
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axolotl.cli.utils import load_model_and_tokenizer
from axolotl.utils.dict import DictDefault

from sstoken_plugin.axolotl import trial
from sstoken_plugin.axolotl.experiment import autocast_of, data_of, precision_of
from sstoken_plugin.axolotl.run import run_of
from sstoken_plugin.base.files import expand
from sstoken_plugin.base.visible_text import in_short
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.build import TrainedAdapter, build_history
from sstoken_plugin.history.named import ADAPTER_FILE
from sstoken_plugin.report import Moment, Report, assembly, inspection
from sstoken_plugin.report.breakdown import KeptCounts
from sstoken_plugin.report.content import Record
from sstoken_plugin.report.fit import MAX_LABEL
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.selectors import selector_of
from sstoken_plugin.training import checkpoint
from sstoken_plugin.training.cache import planned_folder
from sstoken_plugin.training.parts import HistoryPart, Saved
from sstoken_plugin.training.plan import Plan, Schedule, plan_of, schedule_of
from sstoken_plugin.training.setup import build_selection, look_at_data, refuse_spread, vocabulary_size
from sstoken_plugin.training.survey import Survey

# In a folder of the user's own the page has this name too, that of version 0.1. A training's page has it as well.
OLD_PAGE = "report.html"


@dataclass(frozen=True)
class Asked:
    """What a user asks to see.

    Attributes:
        adapters: folders of trained adapters; none for the model as it is.
        after: optimizer steps to train first; None for none.
        samples: how many samples, from the first.
        out: folder for the results; None for that of the run.
    """

    adapters: Sequence[str] = ()
    after: int | None = None
    samples: int = 20
    out: str | None = None


@dataclass
class Found:
    """What there is to show.

    Attributes:
        plan: of the run; None where the data set cannot be looked at.
        reports: one a model, each with one moment.
        files: what was written.
        fault: why the page was not; None if it was.
    """

    plan: Plan | None
    reports: list[Report]
    files: list[Path]
    fault: ValueError | None = None


@dataclass(frozen=True)
class _Scorer:
    """A model that selects.

    Attributes:
        label: names it.
        model: it, unwrapped.
        tokenizer: its tokenizer.
        selection: what selects.
        precision: makes the context in which training runs it.
        facts: what was run, see `Report`.
        survey: of the data set; None where it cannot be looked at.
        schedule: of the run; None where it has not begun.
        warnings: those raised about the selection so far.
    """

    label: str
    model: Any
    tokenizer: Any
    selection: TokenSelection
    precision: Callable[[], AbstractContextManager[Any]]
    facts: Mapping[str, str]
    survey: Survey | None
    schedule: Schedule | None = None
    warnings: Sequence[str] = ()


def inspect(cfg: Any, settings: SSTokenConfig, asked: Asked, temporary: Path, tell: Callable[[str], None]) -> Found:
    """Score samples, and write what is found.

    Args:
        cfg: the validated configuration.
        settings: its settings of the selection.
        asked: what to look at.
        temporary: a folder to work in.
        tell: is told what goes on.

    Raises:
        ValueError: the configuration or the model does not fit, or a file cannot be written; one sentence.
    """
    folder = expand(asked.out) if asked.out else Path(cfg.output_dir) / "sstoken"
    key = "--out" if asked.out else "output_dir"
    adapters: list[str | None] = [*asked.adapters] or [None]
    files = [folder / f"selections{f'-{number + 1}' if number else ''}.jsonl" for number in range(len(adapters))]
    page = folder / "inspect.html"
    # Before data and model are loaded.
    _refuse_unwritable(key, folder, [*files, page])
    _refuse_unfit(cfg, asked)
    tell("Preparing the data set.")
    data = data_of(cfg)
    chosen = data.train_dataset.select(range(min(asked.samples, len(data.train_dataset))))
    plan, reports = None, []
    for adapter, file in zip(adapters, files, strict=True):
        tell("Loading the model.")
        if asked.after is None:
            scorer = _loaded(cfg, settings, adapter, data.train_dataset)
        else:
            scorer = _trained_first(cfg, data, asked.after, temporary, tell)
        plan = plan or _plan(cfg, settings, data, scorer)
        tell(f"Scoring {len(chosen)} samples.")
        with _told_if_unwritable(key, file):
            reports.append(_scored(scorer, settings, chosen, file))
        # Before the next one is loaded: of two large models a card holds one.
        del scorer
        gc.collect()
    found = Found(plan, reports, files)
    pages = [page, *([folder / OLD_PAGE] if asked.out and _is_free_for_old_page(folder, page) else [])]
    for file in pages:
        try:
            with _told_if_unwritable(key, file):
                assembly.write_page(file, _together(reports))
        except ValueError as error:
            older = " The page in that folder is from an earlier inspection." if file.exists() else ""
            found.fault = ValueError(f"{error}{older}")
            found.fault.__cause__ = error
            break
        files.append(file)
    return found


def _refuse_unfit(cfg: Any, asked: Asked) -> None:
    if asked.after is not None:
        if asked.adapters:
            raise ValueError(
                "--after trains a model of its own, and --adapter names a trained one; leave one of them out."
            )
        trial.refuse_unfit(cfg)
    if asked.adapters and cfg.adapter not in ("lora", "qlora"):
        raise ValueError("--adapter needs `adapter: lora` or `adapter: qlora` in the YAML; --after N needs none.")
    if len(asked.adapters) > 2:
        raise ValueError(f"--adapter is given {len(asked.adapters)} times; at most two can be compared.")
    for adapter in asked.adapters:
        if not (Path(adapter) / ADAPTER_FILE).is_file():
            raise ValueError(
                f"--adapter: {adapter} holds no {ADAPTER_FILE}; name a run's output_dir, or one of its checkpoints."
            )


def _loaded(cfg: Any, settings: SSTokenConfig, adapter: str | None, data: Any) -> _Scorer:
    """Load the model as it is before training, or with a trained adapter."""
    model, tokenizer, _ = load_model_and_tokenizer(
        cfg=DictDefault({**cfg, "lora_model_dir": adapter}) if adapter else cfg
    )
    refuse_spread(model)
    run = run_of(cfg)
    look = look_at_data(data, run, model, tokenizer)
    precision = precision_of(model, autocast_of(cfg))
    history = build_history(
        settings,
        run,
        model,
        tokenizer,
        trains=False,
        trained=_trained(Path(adapter)) if adapter else None,
        cache=expand(settings.cache_folder) if settings.cache_folder else None,
        precision=precision,
    )
    with precision():
        selection = build_selection(settings, run, model, history, look)
    label = f"adapter {adapter}" if adapter else "untrained model"
    facts = assembly.facts_of(run, model, data)
    return _Scorer(label, model, tokenizer, selection, precision, facts, look.survey)


def _trained_first(cfg: Any, data: Any, steps: int, temporary: Path, tell: Callable[[str], None]) -> _Scorer:
    """Train the first steps of the run, whose own selection and history score then."""
    trainer, watch = trial.train(cfg, data, steps, temporary / "training", tell)
    session = trainer.sstoken
    return _Scorer(
        f"after {watch.done} of {watch.of} steps",
        session.model,
        session.tokenizer,
        session.selection,
        trainer.accelerator.autocast,
        assembly.facts_of(run_of(cfg), session.model, session.samples),
        session.survey,
        schedule_of(trainer),
        session.warnings,
    )


def _plan(cfg: Any, settings: SSTokenConfig, data: Any, scorer: _Scorer) -> Plan | None:
    """Return what the run will do."""
    survey = scorer.survey
    if survey is None:
        return None
    schedule = scorer.schedule or _schedule(cfg, data, survey)
    store = planned_folder(settings, run_of(cfg), cfg.output_dir, schedule.epochs)
    return plan_of(scorer.selection, scorer.model, survey, schedule, str(store) if store else "")


def _schedule(cfg: Any, data: Any, survey: Survey) -> Schedule:
    """Return how long a run in one process is, by its configuration."""
    # A packed row takes what fits.
    rows = survey.tokens * survey.scale / cfg.sequence_len if cfg.sample_packing else len(data.train_dataset)
    of_epoch = max(1, math.ceil(rows / cfg.batch_size))
    steps = data.total_num_steps or math.ceil(of_epoch * cfg.num_epochs)
    return Schedule(steps, steps / of_epoch if cfg.max_steps else cfg.num_epochs)


def _scored(scorer: _Scorer, settings: SSTokenConfig, samples: Any, file: Path) -> Report:
    """Score samples by the settings after the warm-up, if anything is, and write the records to a file."""
    phase = Phase.at_end(settings)
    counts = KeptCounts(scorer.tokenizer, vocabulary_size(scorer.model, scorer.tokenizer))
    with scorer.precision():
        scored = inspection.inspect_samples(
            scorer.selection, scorer.model, samples, phase, scorer.tokenizer, counts.add
        )
        records = inspection.write_records(scored, file)
    if any(any(record["response"]) for record in records):
        told = without_rel(settings, phase, records)
    else:
        told = ["No sample here has a response token; look at `type`, `roles_to_train` and the keys beside them."]
    warnings = [*scorer.warnings, *told]
    moment = Moment(scorer.label, phase.rule, phase.gamma, phase.ratio, records)
    tables = counts.tables(counts.counts.cpu())
    return assembly.report_of(scorer.selection, scorer.tokenizer, [moment], tables, scorer.facts, warnings=warnings)


def without_rel(settings: SSTokenConfig, phase: Phase, records: Sequence[Record]) -> list[str]:
    """Return what to say of samples that REL should rank and does not, because it is zero throughout; or nothing.

    Args:
        settings: of the selection.
        phase: what ranked.
        records: the scored samples.
    """
    if not (settings.ranks_by_rel and phase.reads_history) or any(
        value for record in records for value in record["rel"]
    ):
        return []
    if phase.reads_attention:
        left = "this shows prompt attention alone"
    elif "history" in selector_of(phase.rule).needs:
        left = "this shows what the loss before training ranks, which is something else"
    else:
        left = "this shows no choice at all: among equals the earlier token is kept"
    return [
        f"REL is zero at every token, because the model is still what it is compared with, so that {left}. "
        "`--after 20` trains the first 20 steps of the YAML for a look, `--adapter DIR` takes a trained adapter."
    ]


def _together(reports: Sequence[Report]) -> Report:
    """Return one report with the moments and tables of several."""
    moments = [moment for report in reports for moment in report.moments]
    tables = [
        replace(table, title=table.title if len(moments) == 1 else _title(table.title, moment.label))
        for report in reports
        for moment in report.moments
        for table in report.breakdowns
    ]
    warnings = list(dict.fromkeys(warning for report in reports for warning in report.warnings))
    return replace(reports[-1], moments=moments, breakdowns=tables, warnings=warnings)


def _title(title: str, label: str) -> str:
    """Return a title of a table that names a model: of a long path the end, which tells it from another."""
    room = MAX_LABEL - len(title) - len(": ...")
    return f"{title}: {label if len(label) <= room else f'...{label[-room:]}'}"


def keep_log(log: Path, beside: Path) -> Path | None:
    """Copy what others have said beside the results; None where there is no room for it, which is no harm.

    Args:
        log: the file that has it.
        beside: a file of the results.
    """
    kept = beside.with_name("inspect.log")
    try:
        shutil.copyfile(log, kept)
    except OSError:
        return None
    return kept


def _is_free_for_old_page(folder: Path, page: Path) -> bool:
    """Tell whether a page in a folder of the user's own may have its name in version 0.1, too."""
    old = folder / OLD_PAGE
    if folder.resolve().name == "sstoken":
        return False
    return not old.exists() or (old.is_file() and page.is_file() and old.read_bytes() == page.read_bytes())


def _refuse_unwritable(key: str, folder: Path, files: Sequence[Path]) -> None:
    """Refuse a folder in which the results could not be written, and make it where it is missing."""
    with _told_if_unwritable(key, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if taken := next((file for file in files if file.is_dir()), None):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(taken))
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"sstoken")


@contextmanager
def _told_if_unwritable(key: str, place: Path) -> Iterator[None]:
    """Turn what goes wrong in writing into one sentence.

    Raises:
        ValueError: see there.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{key}: {place} cannot be written ({in_short(error)}); name another folder, or make room."
        ) from error


def _trained(folder: Path) -> TrainedAdapter:
    """Return a trained adapter, with the history that its checkpoint holds."""
    reason = ""
    try:
        found = checkpoint.read(folder, (HistoryPart.name,))
    except ValueError as error:
        found, reason = None, str(error)
    if found is None:
        return TrainedAdapter(folder, reason=reason)
    saved = found.parts.get(HistoryPart.name, Saved())
    kind = saved.facts.get("kind") if isinstance(saved.facts, dict) else None
    return TrainedAdapter(folder, kind, dict(saved.tensors), found.lost.get(HistoryPart.name, ""))
