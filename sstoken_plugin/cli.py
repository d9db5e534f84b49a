"""Commands that the plugin adds to Axolotl's command line."""

from __future__ import annotations

from pathlib import Path

import click
import yaml


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
    import torch
    from axolotl.cli.config import load_cfg
    from axolotl.cli.utils import load_model_and_tokenizer
    from axolotl.common.datasets import load_datasets
    from axolotl.utils.dict import DictDefault

    from sstoken_plugin import compatibility
    from sstoken_plugin.inspection import inspect_samples, write_records
    from sstoken_plugin.report import render
    from sstoken_plugin.setup import build_selection, describe
    from sstoken_plugin.step import Phase

    raw = DictDefault(yaml.safe_load(Path(config).read_text(encoding="utf-8")))
    if not any(name in compatibility.NAMES for name in raw.plugins or []):
        raw.plugins = [*(raw.plugins or []), "sstoken_plugin.SSTokenPlugin"]
    cfg = load_cfg(raw, **overrides)
    # Axolotl writes a configuration that is no file to one, and leaves it behind.
    Path(cfg.axolotl_config_path).unlink(missing_ok=True)
    settings = compatibility.check(cfg)
    if adapter is not None:
        if cfg.adapter not in ("lora", "qlora"):
            raise ValueError(f"--adapter needs `adapter: lora` or `adapter: qlora` in {config}.")
        cfg.lora_model_dir = adapter

    data = load_datasets(cfg=cfg).train_dataset
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg)
    folder = Path(out or Path(cfg.output_dir) / "sstoken")
    chosen = data.select(range(min(samples, len(data))))
    mixed_precision = bool(cfg.bf16 or cfg.fp16)
    with torch.autocast(model.device.type, dtype=cfg.torch_dtype, enabled=mixed_precision):
        selection = build_selection(settings, cfg, model, tokenizer, adapter_is_trained=adapter is not None)
        sentence = describe(selection, tokenizer)
        scored = inspect_samples(selection, model, chosen, Phase.of(settings), tokenizer)
        records = write_records(scored, folder / "selections.jsonl")
    (folder / "report.html").write_text(render(records, sentence, settings.model_dump()), encoding="utf-8")
    response = sum(sum(record["response"]) for record in records)
    kept = sum(sum(record["selected"]) for record in records)
    click.echo(sentence)
    click.echo(f"{len(records)} samples: {kept} of {response} response tokens kept.")
    click.echo(f"Written: {folder / 'selections.jsonl'}, {folder / 'report.html'}")


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
