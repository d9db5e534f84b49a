"""Commands that the plugin adds to Axolotl's command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from sstoken_plugin.config import SSTokenConfig


@click.command(
    name="sstoken-inspect",
    short_help="show which tokens ssToken keeps, without training",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False),
    help="A trained adapter; without one, the untrained model.",
)
@click.option(
    "--samples",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many samples of the prepared data set, from the first.",
)
@click.option("--out", type=click.Path(file_okay=False), help="Folder for the results  [default: OUTPUT_DIR/sstoken]")
@click.pass_context
def inspect_command(context: click.Context, config: str, adapter: str | None, samples: int, out: str | None) -> None:
    """Score samples of the data set of CONFIG without training.

    Writes selections.jsonl and report.html. Settings can be overridden as in `--sstoken.ratio=0.4`. CONFIG
    need not name the plugin yet.
    """
    try:
        inspect(config, _overrides(context.args), adapter, samples, out)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def inspect(config: str, overrides: dict[str, str], adapter: str | None, samples: int, out: str | None) -> None:
    """See `inspect_command`.

    Raises:
        ValueError: the configuration does not fit; one sentence with key and mend.
    """
    # Here, so that `axolotl --help` stays quick.
    from axolotl.cli.utils import load_model_and_tokenizer
    from axolotl.common.datasets import load_datasets
    from axolotl.utils.dict import DictDefault

    from sstoken_plugin.history.build import build_history
    from sstoken_plugin.inspection import inspect_samples, write_records
    from sstoken_plugin.report import Moment, Report, render
    from sstoken_plugin.setup import build_selection, describe, describe_history, versions
    from sstoken_plugin.step import Phase

    cfg, settings = _load(config, overrides)
    if adapter is not None and cfg.adapter not in ("lora", "qlora"):
        raise ValueError(f"--adapter needs `adapter: lora` or `adapter: qlora` in {config}.")
    data = load_datasets(cfg=cfg).train_dataset
    model, tokenizer, _ = load_model_and_tokenizer(
        cfg=DictDefault({**cfg, "lora_model_dir": adapter}) if adapter else cfg
    )
    folder = Path(out or Path(cfg.output_dir) / "sstoken")
    chosen = data.select(range(min(samples, len(data))))
    precision = _precision(cfg, model)
    history = build_history(
        settings,
        cfg,
        model,
        tokenizer,
        trains=False,
        trained_adapter=Path(adapter) if adapter else None,
        precision=precision,
    )
    with precision():
        selection = build_selection(settings, cfg, model, tokenizer, history)
        sentence = describe(selection, tokenizer)
        phase = Phase.of(settings)
        scored = inspect_samples(selection, model, chosen, phase, tokenizer)
        records = write_records(scored, folder / "selections.jsonl")
    label = f"adapter {adapter}" if adapter else "before training"
    report = Report(
        sentence=sentence,
        settings=settings.model_dump(),
        versions=versions(),
        history=describe_history(selection),
        moments=[Moment(label, phase.rule, phase.gamma, phase.ratio, records)],
        end_tokens=selection.end_tokens if settings.keep_eos else (),
    )
    (folder / "report.html").write_text(render(report), encoding="utf-8")
    response = sum(sum(record["response"]) for record in records)
    kept = sum(sum(record["selected"]) for record in records)
    click.echo(sentence)
    click.echo(f"{len(records)} samples: {kept} of {response} response tokens kept.")
    click.echo(f"Written: {folder / 'selections.jsonl'}, {folder / 'report.html'}")


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

    Training after it runs no history model. Can be interrupted: run again, it goes on where it stopped. Settings can
    be overridden as in `--sstoken.history_cache=FOLDER`.
    """
    try:
        score(config, _overrides(context.args), batch_tokens)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def score(config: str, overrides: dict[str, str], batch_tokens: int) -> None:
    """See `score_command`.

    Raises:
        ValueError: the configuration does not fit; one sentence with key and mend.
    """
    from axolotl.cli.utils import load_model_and_tokenizer
    from axolotl.common.datasets import load_datasets
    from tqdm import tqdm

    from sstoken_plugin import scoring
    from sstoken_plugin.history.build import build_history

    cfg, settings = _load(config, overrides)
    if settings.history_cache is None:
        raise ValueError(
            "sstoken.history_cache names no folder; set it in the YAML or as --sstoken.history_cache=FOLDER."
        )
    data = load_datasets(cfg=cfg).train_dataset
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg)
    precision = _precision(cfg, model)
    losses = build_history(settings, cfg, model, tokenizer, trains=False, precision=precision)
    if losses is None or losses.store is None:
        raise ValueError(f"sstoken.selector: {settings.selector} ranks by no history; there is nothing to score.")
    work = scoring.work_left(losses, data)
    tokens = sum(batch["input_ids"].shape[1] for batch in work.missing)
    click.echo(f"{work.samples} samples, {work.samples - len(work.missing)} of them in {losses.store.file} already.")
    with tqdm(total=tokens, unit=" tokens", unit_scale=True, disable=not tokens) as progress:
        for done in scoring.score(losses, model, work, batch_tokens):
            progress.update(done)
        seconds = progress.format_dict["elapsed"]
    losses.store.close()
    if tokens:
        click.echo(f"{tokens} tokens in {seconds:.0f} s: {tokens / seconds:.0f} tokens a second.")
    size = losses.store.file.stat().st_size
    click.echo(
        f"{losses.store.file}: {size / 2**20:.2f} MiB, of which this data set has {work.response_tokens} losses."
    )


def _load(config: str, overrides: dict[str, str]) -> tuple[Any, SSTokenConfig]:
    """Load and check a YAML, which need not name the plugin yet."""
    from axolotl.cli.config import load_cfg
    from axolotl.utils.dict import DictDefault

    from sstoken_plugin import compatibility

    raw = DictDefault(yaml.safe_load(Path(config).read_text(encoding="utf-8")))
    if not any(name in compatibility.NAMES for name in raw.plugins or []):
        raw.plugins = [*(raw.plugins or []), "sstoken_plugin.SSTokenPlugin"]
    cfg = load_cfg(raw, **overrides)
    # Axolotl writes a configuration that is no file to one, and leaves it behind.
    Path(cfg.axolotl_config_path).unlink(missing_ok=True)
    return cfg, compatibility.check(cfg)


def _precision(cfg: Any, model: Any) -> Callable[[], Any]:
    """Return what makes the context in which training would run the model."""
    import torch

    enabled = bool(cfg.bf16 or cfg.fp16)
    return lambda: torch.autocast(model.device.type, dtype=cfg.torch_dtype, enabled=enabled)


def _overrides(arguments: list[str]) -> dict[str, str]:
    """Turn `--sstoken.ratio 0.4` and `--sstoken.ratio=0.4` into Axolotl's keywords for nested keys."""
    found = {}
    words = iter(arguments)
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            value = next(words, "")
        if not key.startswith("--") or not value:
            raise ValueError(f"{word} is not an option; an override is written as --sstoken.ratio=0.4.")
        found[key.removeprefix("--").replace(".", "__").replace("-", "_")] = value
    return found
