"""Commands that the plugin adds to Axolotl's command line."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from sstoken_plugin.axolotl import SHOWN
from sstoken_plugin.base.files import expand
from sstoken_plugin.base.numbers import counted
from sstoken_plugin.base.streams import has_colours
from sstoken_plugin.base.told import is_told, told_in_a_sentence
from sstoken_plugin.base.visible_text import in_short, one_line
from sstoken_plugin.selection.config import SSTokenConfig, nearest

if TYPE_CHECKING:
    from sstoken_plugin.report import Report


# Of what others said before an error.
MOST_LINES = 40
# Of options for the settings of the selection.
_BLOCK = "sstoken."


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
    "--after",
    metavar="N",
    type=click.IntRange(min=1),
    help="Train the first N optimizer steps of CONFIG before scoring; nothing of the training is kept.",
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
    context: click.Context,
    config: str,
    adapters: tuple[str, ...],
    after: int | None,
    samples: int,
    show: int,
    out: str | None,
) -> None:
    """Score samples of the data set of CONFIG before training, or after its first steps.

    Prints some of them and writes selections.jsonl and inspect.html, and to inspect.log what Axolotl says. Settings can
    be overridden as in `--sstoken.ratio=0.4`. CONFIG need not name the plugin yet.
    """
    with told_in_a_sentence():
        overrides = _overrides(context)
        with _others_aside() as (folder, log, tell):
            # Here, so that `axolotl --help` stays quick.
            from sstoken_plugin.axolotl.inspection import Asked, inspect, keep_log

            found = inspect(*_load(config, overrides), Asked(adapters, after, samples, out), folder, tell)
            kept = keep_log(log, found.files[0])
        # After the files, so that nothing that happens to a terminal costs one.
        if found.plan is not None:
            click.echo("\n".join(one_line(f"{name:<9}{words}") for name, words in found.plan.parts()))
        _show(found.reports, show)
        click.echo(one_line(f"Written: {', '.join(map(str, [*found.files, *([kept] if kept else [])]))}"))
        if found.fault is not None:
            raise found.fault


def _show(reports: Sequence[Report], samples: int) -> None:
    """Print what was found: in all, and the first samples."""
    from sstoken_plugin.report import terminal

    colours = has_colours(sys.stdout, os.environ)
    moments = [moment for report in reports for moment in report.moments]
    for report, moment in zip(reports, moments, strict=True):
        click.echo(one_line(report.sentence))
        click.echo(one_line(f"{moment.label}: {terminal.total(moment.records)}"))
        for warning in report.warnings:
            click.echo(one_line(warning))
        for record in moment.records[:samples]:
            click.echo("\n".join(terminal.view(record, colours=colours)))
    if samples:
        click.echo(terminal.legend(colours=colours))
    if len(moments) == 2:
        click.echo(terminal.agreement(*(moment.records for moment in moments)))


@contextmanager
def _others_aside() -> Iterator[tuple[Path, Path, Callable[[str], None]]]:
    """Set aside what Axolotl and others print; where an error needs it, its end is shown.

    Yields:
        A folder to work in, which goes after the block; the file with what is set aside; and what tells a user a line.
    """
    from sstoken_plugin.base.aside import set_aside

    with tempfile.TemporaryDirectory(prefix="sstoken-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        log = folder / "log"
        try:
            with set_aside(log, ("sstoken_plugin", SHOWN)) as tell, _own_debug_log(folder):
                yield folder, log, tell
        except (Exception, SystemExit) as error:
            if not (isinstance(error, ValueError) and is_told(error)):
                said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-MOST_LINES:]
                click.echo("\n".join([*map(one_line, said), ""]), err=True)
            raise


@contextmanager
def _own_debug_log(folder: Path) -> Iterator[None]:
    """Leave OUTPUT_DIR/debug.log to the training that it is of: Axolotl begins it anew with whatever it loads."""
    from axolotl.utils import tee
    from axolotl.utils.dict import DictDefault

    own = folder / "debug.log"
    is_ours = tee.prepare_debug_log(DictDefault(output_dir=str(folder)), own.name) == str(own)
    # What Axolotl has put in their place takes a lock when it goes, and must not go while closing holds the same one.
    streams = sys.stdout, sys.stderr
    try:
        yield
    finally:
        # Another of this process would go on with it.
        if is_ours:
            tee.close_debug_log()
        del streams


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
    from sstoken_plugin.axolotl.experiment import autocast_of, data_of, precision_of
    from sstoken_plugin.axolotl.run import run_of
    from sstoken_plugin.history import scoring
    from sstoken_plugin.history.build import build_history
    from sstoken_plugin.training.cache import own_folder
    from sstoken_plugin.training.setup import look_at_data, refuse_spread

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
    refuse_spread(model)
    run = run_of(cfg)
    look_at_data(data, run, model, tokenizer)
    precision = precision_of(model, autocast_of(cfg))
    losses = build_history(settings, run, model, tokenizer, trains=False, cache=cache, precision=precision)
    if losses is None or losses.store is None or not settings.needs_history:
        raise ValueError(f"sstoken.selector: {settings.selector} ranks by no history; there is nothing to score.")
    whole = scoring.work_left(losses, data)
    # All ranks must have found the same work before one of them does any.
    ranks.wait_for_everyone()
    work = whole.part(ranks.process_index, ranks.num_processes)
    there, file = whole.samples - len(whole.missing), one_line(str(losses.store.file))
    tell = click.echo if ranks.is_main_process else lambda words: None
    tell(f"{counted(whole.samples, 'sample')}, {there} of them in {file} already.")
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
    # As a launcher passes them on, and under `strict: true` too. Axolotl casts nested keys to the type that the YAML
    # has there, by which `false` would become a folder of that name, and a folder `false`.
    ours = {key: value for key, value in overrides.items() if key.startswith(_BLOCK)}
    raw.update({key: _value(text) for key, text in ours.items()})
    known = {*raw, *AxolotlInputConfig.model_fields}
    if not compatibility.names_us(raw):
        raw.plugins = [*(raw.plugins or []), "sstoken_plugin.SSTokenPlugin"]
    with _processes_without_a_gpu():
        cfg = load_cfg(raw, **{key: value for key, value in overrides.items() if key not in ours})
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
    # A date that is none is a ValueError, and so is what is no UTF-8.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{config} cannot be read as YAML in UTF-8: {in_short(error)}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{config} holds no keys; a YAML of Axolotl has lines such as `base_model: FOLDER`.")
    return found


def _overrides(context: click.Context) -> dict[str, str]:
    """Turn `--sstoken.ratio 0.4` and `--sstoken.ratio=0.4` into keys with a dot, and others into Axolotl's keywords."""
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
        nested = name if name.startswith(_BLOCK) else name.replace(".", "__")
        found[nested.replace("-", "_")] = value
    return found


def _value(text: str) -> Any:
    """Return what a text would be in a YAML; the text itself, where it would be none."""
    try:
        return yaml.safe_load(text)
    # The latter of a date that is none.
    except (yaml.YAMLError, ValueError):
        return text


def _refuse_unknown(overrides: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that Axolotl would take in and never read."""
    for key in overrides:
        name = key.replace("__", ".").partition(".")[0]
        if name not in known:
            raise ValueError(
                f"--{key.replace('__', '.')} is no option of this command and no key of Axolotl's; the nearest key is "
                f"{nearest(name, known)}."
            )
