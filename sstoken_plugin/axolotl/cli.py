"""Commands that the plugin adds to Axolotl's command line."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import click
import yaml

from sstoken_plugin.base.files import expand
from sstoken_plugin.base.streams import has_colours, replace_what_streams_lack
from sstoken_plugin.base.visible_text import in_short, one_line, visible
from sstoken_plugin.selection.config import SSTokenConfig, nearest

if TYPE_CHECKING:
    from sstoken_plugin.history.build import TrainedAdapter
    from sstoken_plugin.report import Report


# Of the inspector's page in version 0.1, where the results have a folder of their own. A training's page has it too.
OLD_PAGE = "report.html"


@click.command(
    name="sstoken-inspect",
    short_help="show which tokens ssToken keeps, without training",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="A trained adapter; without one, the untrained model. Given twice, two are compared.",
)
@click.option(
    "--samples",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many samples of the prepared data set, from the first.",
)
@click.option(
    "--show",
    default=3,
    show_default=True,
    type=click.IntRange(min=0),
    help="How many of them to print.",
)
@click.option("--out", type=click.Path(file_okay=False), help="Folder for the results  [default: OUTPUT_DIR/sstoken]")
@click.pass_context
def inspect_command(
    context: click.Context, config: str, adapters: tuple[str, ...], samples: int, show: int, out: str | None
) -> None:
    """Score samples of the data set of CONFIG without training.

    Prints some of them and writes selections.jsonl and inspect.html. Settings can be overridden as in
    `--sstoken.ratio=0.4`. CONFIG need not name the plugin yet.
    """
    with told_in_a_sentence():
        inspect(config, _overrides(context), adapters, samples, show, out)


def inspect(
    config: str, overrides: dict[str, str], adapters: Sequence[str], samples: int, show: int, out: str | None
) -> None:
    """See `inspect_command`.

    Raises:
        ValueError: the configuration does not fit; one sentence with key and fix.
    """
    # Here, so that `axolotl --help` stays quick.
    from sstoken_plugin.axolotl.experiment import data_of
    from sstoken_plugin.report import terminal
    from sstoken_plugin.report.assembly import write_page

    cfg, settings = _load(config, overrides)
    folder = expand(out) if out else Path(cfg.output_dir) / "sstoken"
    asked: list[str | None] = [*adapters] or [None]
    files = [folder / f"selections{f'-{number + 1}' if number else ''}.jsonl" for number in range(len(asked))]
    page = folder / "inspect.html"
    key = "--out" if out else "output_dir"
    # Before data and model are loaded.
    _refuse_unwritable(key, folder, [*files, page])
    if adapters and cfg.adapter not in ("lora", "qlora"):
        raise ValueError(f"--adapter needs `adapter: lora` or `adapter: qlora` in {config}.")
    if len(adapters) > 2:
        raise ValueError(f"--adapter is given {len(adapters)} times; at most two can be compared.")
    data = data_of(cfg).train_dataset
    reports = [
        _inspect(cfg, settings, adapter, data, samples, file, key) for adapter, file in zip(asked, files, strict=True)
    ]
    moments = [moment for report in reports for moment in report.moments]
    tables = [
        replace(table, title=table.title if len(moments) == 1 else f"{moment.label}: {table.title}")
        for report in reports
        for moment in report.moments
        for table in report.breakdowns
    ]
    pages = [page, *([folder / OLD_PAGE] if out and _is_free_for_old_page(folder, page) else [])]
    fault = None
    for file in pages:
        try:
            with _told_if_unwritable(key, file):
                write_page(file, replace(reports[-1], moments=moments, breakdowns=tables))
        except ValueError as error:
            fault = error
            break
        files.append(file)
    # After the files, so that nothing that happens to a terminal costs one.
    colours = has_colours(sys.stdout, os.environ)
    for report, moment in zip(reports, moments, strict=True):
        click.echo(one_line(report.sentence))
        click.echo(one_line(f"{moment.label}: {terminal.total(moment.records)}"))
        for record in moment.records[:show]:
            click.echo("\n".join(terminal.view(record, colours=colours)))
    if show:
        click.echo(terminal.legend(colours=colours))
    if len(moments) == 2:
        click.echo(terminal.agreement(*(moment.records for moment in moments)))
    click.echo(one_line(f"Written: {', '.join(map(str, files))}"))
    if fault is not None:
        older = " The page in that folder is from an earlier inspection." if file.exists() else ""
        raise ValueError(f"{fault}{older}") from fault


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


def _inspect(
    cfg: Any, settings: SSTokenConfig, adapter: str | None, data: Any, samples: int, file: Path, key: str
) -> Report:
    """Score the first samples with the untrained model or an adapter; the model is dropped after."""
    from axolotl.cli.utils import load_model_and_tokenizer
    from axolotl.utils.dict import DictDefault

    from sstoken_plugin.axolotl.experiment import precision_of
    from sstoken_plugin.axolotl.run import run_of
    from sstoken_plugin.engine.step import Phase
    from sstoken_plugin.history.build import build_history
    from sstoken_plugin.report import Moment
    from sstoken_plugin.report.assembly import report_of
    from sstoken_plugin.report.breakdown import KeptCounts
    from sstoken_plugin.report.inspection import inspect_samples, write_records
    from sstoken_plugin.training.setup import build_selection, look_at_data, vocabulary_size

    model, tokenizer, _ = load_model_and_tokenizer(
        cfg=DictDefault({**cfg, "lora_model_dir": adapter}) if adapter else cfg
    )
    run = run_of(cfg)
    ends = look_at_data(data, run, model, tokenizer)
    precision = precision_of(cfg, model)
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
    counts, phase = KeptCounts(tokenizer, vocabulary_size(model, tokenizer)), Phase.of(settings)
    with precision():
        selection = build_selection(settings, run, model, history, ends)
        chosen = data.select(range(min(samples, len(data))))
        with _told_if_unwritable(key, file):
            records = write_records(inspect_samples(selection, model, chosen, phase, tokenizer, counts.add), file)
    label = f"adapter {adapter}" if adapter else "untrained model"
    moment = Moment(label, phase.rule, phase.gamma, phase.ratio, records)
    return report_of(selection, tokenizer, [moment], counts.tables(counts.counts.cpu()))


def _trained(folder: Path) -> TrainedAdapter:
    """Return a trained adapter, with the history that its checkpoint holds."""
    from sstoken_plugin.history.build import TrainedAdapter
    from sstoken_plugin.training import checkpoint
    from sstoken_plugin.training.parts import Saved

    reason = ""
    try:
        found = checkpoint.read(folder)
    except ValueError as error:
        found, reason = None, str(error)
    if found is None:
        return TrainedAdapter(folder, reason=reason)
    saved = found.parts.get("history", Saved())
    kind = saved.facts.get("kind") if isinstance(saved.facts, dict) else None
    return TrainedAdapter(folder, kind, dict(saved.tensors), found.lost.get("history", ""))


@click.command(
    name="sstoken-score",
    short_help="compute the history's losses ahead of training",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--batch-tokens",
    default=16384,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens of a batch, padding included.",
)
@click.pass_context
def score_command(context: click.Context, config: str, batch_tokens: int) -> None:
    """Fill sstoken.history_cache with the losses of the history on the data set of CONFIG.

    Training after it runs no history model. Can be interrupted: run again, it goes on where it stopped. Several
    processes share the work: `accelerate launch -m sstoken_plugin sstoken-score CONFIG`. Settings can be overridden as
    in `--sstoken.history_cache=FOLDER`.
    """
    with told_in_a_sentence():
        score(config, _overrides(context), batch_tokens)


def score(config: str, overrides: dict[str, str], batch_tokens: int) -> None:
    """See `score_command`.

    Raises:
        ValueError: the configuration does not fit; one sentence with key and fix.
    """
    from accelerate import PartialState
    from axolotl.cli.utils import load_model_and_tokenizer
    from tqdm import tqdm

    from sstoken_plugin.axolotl import compatibility
    from sstoken_plugin.axolotl.experiment import data_of, precision_of
    from sstoken_plugin.axolotl.run import run_of
    from sstoken_plugin.history import scoring
    from sstoken_plugin.history.build import build_history
    from sstoken_plugin.training.cache import own_folder
    from sstoken_plugin.training.setup import look_at_data

    # Before Axolotl asks for it, which does not say that there may be no GPU.
    ranks = PartialState(cpu=_has_no_gpu())
    cfg, settings = _load(config, overrides)
    if settings.history_cache is False:
        raise ValueError("sstoken.history_cache: false keeps no losses; remove the key, or name a folder.")
    cache = expand(settings.cache_folder) if settings.cache_folder else own_folder(cfg.output_dir)
    if settings.cache_folder is None:
        if settings.needs_history and not settings.may_keep_losses:
            raise ValueError(
                f"sstoken.history: {settings.history} follows the training, so that its losses cannot be computed "
                "ahead of it; leave sstoken-score out."
            )
        compatibility.refuse_unfit_cache(cfg, str(cache))
    data = data_of(cfg).train_dataset
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg)
    run = run_of(cfg)
    look_at_data(data, run, model, tokenizer)
    precision = precision_of(cfg, model)
    losses = build_history(settings, run, model, tokenizer, trains=False, cache=cache, precision=precision)
    if losses is None or losses.store is None or not settings.needs_history:
        raise ValueError(f"sstoken.selector: {settings.selector} ranks by no history; there is nothing to score.")
    whole = scoring.work_left(losses, data)
    # All ranks must have found the same work before one of them does any.
    ranks.wait_for_everyone()
    work = whole.part(ranks.process_index, ranks.num_processes)
    there, file = whole.samples - len(whole.missing), one_line(str(losses.store.file))
    tell = click.echo if ranks.is_main_process else lambda words: None
    tell(f"{whole.samples} samples, {there} of them in {file} already.")
    of_all = f" of {whole.tokens}, this process's part," if ranks.num_processes > 1 else ""
    is_shown = bool(work.tokens) and ranks.is_main_process
    with tqdm(total=work.tokens, unit=" tokens", unit_scale=True, disable=not is_shown) as progress:
        start = time.perf_counter()
        for done in scoring.score(losses, model, data, work, batch_tokens):
            progress.update(done)
        seconds = time.perf_counter() - start
    losses.store.close()
    # The others are not waited for: a wait of hours would end in an error.
    if work.tokens:
        tell(f"{work.tokens} tokens{of_all} in {seconds:.0f} s: {work.tokens / seconds:.0f} tokens a second.")
    size = losses.store.file.stat().st_size / 2**10
    shown = f"{size:.0f} KiB" if size < 2**10 else f"{size / 2**10:.1f} MiB"
    others = " once the other processes are done" if ranks.num_processes > 1 else ""
    tell(f"{file}: {shown}, of which this data set has {whole.response_tokens} losses{others}.")


def _load(config: str, overrides: dict[str, str]) -> tuple[Any, SSTokenConfig]:
    """Load and check a YAML, which need not name the plugin yet."""
    from axolotl.cli.config import load_cfg
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig

    from sstoken_plugin.axolotl import compatibility

    raw = DictDefault(_read(config))
    known = {*raw, *AxolotlInputConfig.model_fields}
    if not compatibility.names_us(raw):
        raw.plugins = [*(raw.plugins or []), "sstoken_plugin.SSTokenPlugin"]
    with _processes_without_a_gpu():
        cfg = load_cfg(raw, **overrides)
    _refuse_unknown(overrides, {*known, *cfg})
    # Axolotl writes a configuration that is no file to one, and leaves it behind.
    Path(cfg.axolotl_config_path).unlink(missing_ok=True)
    if _has_no_gpu():
        # For one of several processes it names the GPU with its number.
        cfg.device_map = "cpu"
    return cfg, compatibility.check(cfg)


def _has_no_gpu() -> bool:
    import torch

    return not torch.accelerator.is_available()


@contextmanager
def _processes_without_a_gpu() -> Iterator[None]:
    """Let several processes read a configuration on a machine without a GPU."""
    import torch

    from sstoken_plugin.engine.modes import replaced

    if not _has_no_gpu():
        yield
        return
    # A torch that is built for GPUs fails at the question whether they reach each other.
    with replaced(torch.cuda, "can_device_access_peer", lambda *devices: False):
        yield


def _read(config: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f"{config} cannot be read as YAML in UTF-8: {in_short(error)}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{config} holds no keys; a YAML of Axolotl has lines such as `base_model: FOLDER`.")
    return found


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Tell errors about the configuration in a sentence, on a terminal that may not have every character."""
    replace_what_streams_lack()
    try:
        yield
    except ValueError as error:
        if not _is_told(error):
            raise
        words = str(error)
        raise click.ClickException(one_line(words) if type(error) is ValueError else visible(words)) from error


def _is_told(error: ValueError) -> bool:
    """Tell whether an error was raised to be read by users: by us, or as the result of validation."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    ours = frames[-1].f_globals.get("__name__", "").partition(".")[0] in ("sstoken_plugin", "sstoken_startup")
    return ours or (type(error) is not ValueError and not isinstance(error, UnicodeError))


def _overrides(context: click.Context) -> dict[str, str]:
    """Turn `--sstoken.ratio 0.4` and `--sstoken.ratio=0.4` into Axolotl's keywords for nested keys."""
    found = {}
    words = iter(context.args)
    for word in words:
        key, separator, value = word.partition("=")
        name = key.removeprefix("--")
        if not key.startswith("--") or not name:
            raise ValueError(f"{word} is not an option; an override is written as --sstoken.ratio=0.4.")
        if name in SSTokenConfig.model_fields and name not in ("seed", "warmup_ratio"):
            raise ValueError(f"{key} is not an option; write --sstoken.{name}=VALUE.")
        own = [option.removeprefix("--") for parameter in context.command.params for option in parameter.opts]
        if difflib.get_close_matches(name, own, 1, 0.8):
            raise ValueError(f"{key} is not an option; did you mean --{nearest(name, own)}?")
        if not separator:
            value = next(words, "")
        if not value or value.startswith("--"):
            raise ValueError(f"{key} has no value; an override is written as --sstoken.ratio=0.4.")
        found[name.replace(".", "__").replace("-", "_")] = value
    return found


def _refuse_unknown(overrides: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that Axolotl would take in and never read."""
    for key in overrides:
        name = key.partition("__")[0]
        if name not in known:
            raise ValueError(
                f"--{key.replace('__', '.')} is no option of this command and no key of Axolotl's; the nearest key is "
                f"{nearest(name, known)}."
            )
