"""`axolotl sstoken-compare`: the shortest useful experiment, on a YAML that is there anyway."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from sstoken_plugin.base.files import expand
from sstoken_plugin.base.told import told_in_a_sentence
from sstoken_plugin.experiments.config import MOST_SEEDS, Experiment, parse
from sstoken_plugin.experiments.yaml_file import read_mapping
from sstoken_plugin.selection.config import SSTokenConfig, nearest
from sstoken_plugin.selection.selectors import SELECTORS

if TYPE_CHECKING:
    from sstoken_plugin.experiments.comparison import Table

# Trains without the plugin: what nobody could say of `selector: all`.
PLAIN = "all"
# They keep as many tokens as the selection that is compared, where that is known before it runs.
CONTROLS = ("random", "position")
_EVALUATION = "held_out"
# Axolotl's own default.
_OUTPUT = "./model-out"


@click.command(name="sstoken-compare", short_help="does ssToken help on your data?")
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--arms",
    help="What to compare, with commas between: a selector by its name, `all` being plain training, or NAME:KEY=VALUE,"
    "KEY=VALUE with keys of the sstoken: block, as in sstoken,mine:ratio=0.8,selector=rel,all.  [default: the selector "
    "of CONFIG, or sstoken, with random, position and all; a threshold with all alone]",
)
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1, MOST_SEEDS), help="Trainings of each arm."
)
@click.option(
    "--out", type=click.Path(file_okay=False), help="Folder for the results  [default: OUTPUT_DIR-sstoken-compare]"
)
@click.option("--part", metavar="K/N", help="Have the K-th of N parts of the trainings: for N machines, or N GPUs.")
def compare_command(config: str, arms: str | None, seeds: int, out: str | None, part: str | None) -> None:
    """Train CONFIG once for each arm and seed, and tell by its own evaluation data which arm is better.

    Every arm has the first weights, the order of samples and the samples that are held out of every other with the same
    seed; eval_loss is over all response tokens, whatever was trained on. Says how long it takes before it starts, goes
    on where it stopped when it is run again, and writes compare.html and compare.json.

    Settings of the sstoken: block of CONFIG hold for all arms, but for the selector, and for the ratio of random and
    position, which keep as many tokens as the selection beside them does, its warm-up counted. How many a threshold
    keeps is known once it has run: then give them its share, as in random:ratio=0.95. CONFIG need not name the plugin.
    """
    with told_in_a_sentence():
        compare(config, arms, seeds, out, part)


def compare(config: str, arms: str | None, seeds: int, out: str | None, part: str | None = None) -> None:
    """See `compare_command`.

    Raises:
        ValueError: the configuration does not fit, or runs failed; one sentence with key and fix.
    """
    # Here, so that `axolotl --help` stays quick.
    from sstoken_plugin.experiments.main import Files, conclude, have, refuse_files_of_others
    from sstoken_plugin.experiments.runs import Runs

    base = read_mapping(Path(config), "a YAML of Axolotl has lines such as `base_model: FOLDER`")
    if out is not None and not out.strip():
        raise ValueError("--out: it names no folder; name one, or leave it out.")
    folder = expand(out) if out else _beside(expand(str(base.get("output_dir") or _OUTPUT)))
    experiment = experiment_of(base, config, arms, seeds, folder)
    page, numbers = folder / "compare.html", folder / "compare.json"
    refuse_files_of_others(page, numbers)
    runs = Runs.of(experiment)
    faults = have(experiment, runs, part)
    files = Files(page, f"Does ssToken help? {Path(config).name}", numbers, as_json)
    conclude(experiment, runs, files, faults)


def _beside(output_dir: Path) -> Path:
    # Not inside: a later training with `hub_model_id` uploads all that is there.
    named = output_dir if output_dir.name.strip(".") else output_dir.resolve()
    return named.parent / f"{named.name}-sstoken-compare"


def experiment_of(base: Mapping[str, Any], config: str, arms: str | None, seeds: int, folder: Path) -> Experiment:
    """Return the experiment that a comparison is.

    Raises:
        ValueError: the YAML has no evaluation data, or an arm is none; one sentence with key and fix.
    """
    if not base.get("test_datasets") and not base.get("val_set_size"):
        raise ValueError(
            f"{config} has no evaluation data, by which arms could be compared; set `val_set_size: 0.1` or "
            "`test_datasets:` in it."
        )
    block = base.get("sstoken")
    # Whatever is wrong with it is wrong with every arm.
    selection = SSTokenConfig.from_block(block)
    if arms is None:
        controls = CONTROLS if selection.share is not None else ()
        arms = ",".join(dict.fromkeys((selection.selector, *controls, PLAIN)))
    return parse(
        {
            "base": dict(base),
            "out": str(folder),
            "arms": arms_of(arms, block or {}),
            "seeds": seeds,
            "evaluations": {_EVALUATION: {"kind": "loss"}},
        },
        config,
    )


def arms_of(text: str, block: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Return the `sstoken:` blocks of arms by name, None for plain training.

    Args:
        text: as the option has it.
        block: settings of all arms. The controls have the share of tokens that the selections come to, see
            `SSTokenConfig.share`, or that the block does, if the selections differ in it.

    Raises:
        ValueError: one of them is no arm; one sentence with the fix.
    """
    asked = _split(text)
    found: dict[str, dict[str, Any] | None] = {}
    for name, settings in asked:
        if name in found:
            raise ValueError(f"--arms: {name} is there twice; give one a name of its own, as in mine:selector={name}.")
        found[name] = _arm(name, settings, block)
    if len(found) < 2:
        other = "sstoken" if PLAIN in found else PLAIN
        raise ValueError(
            f"--arms: {text!r} names fewer than two arms, so that there is nothing to compare; add `{other}`."
        )
    return _with_share(found, {name for name, settings in asked if "ratio" in settings}, block)


def _arm(name: str, settings: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `sstoken:` block of one arm, see `arms_of`."""
    if name == PLAIN:
        if settings:
            raise ValueError(f"--arms: {PLAIN} is plain training, which has no settings; name the arm otherwise.")
        return None
    if name not in SELECTORS and not settings:
        raise ValueError(
            f"--arms: {name} is no selector; the nearest one is {nearest(name, SELECTORS)}. An arm with a name of "
            f"its own has settings, as in {name}:ratio=0.8."
        )
    found = {**block, **({"selector": name} if name in SELECTORS else {}), **settings}
    try:
        SSTokenConfig.from_block(found)
    except ValueError as error:
        raise ValueError(f"--arms: {name}: {error}") from None
    return found


def _with_share(
    arms: Mapping[str, dict[str, Any] | None], own: Collection[str], block: Mapping[str, Any]
) -> dict[str, dict[str, Any] | None]:
    """Return arms in which controls keep as many tokens as the selection, but for those with a ratio of their own."""
    selections = {name: SSTokenConfig.from_block(arm) for name, arm in arms.items() if arm is not None}
    shares = {each.share for each in selections.values() if each.selector not in CONTROLS}
    controls = [name for name, each in selections.items() if each.selector in CONTROLS and name not in own]
    if controls and shares == {None}:
        raise ValueError(
            f"--arms: how many tokens {controls[0]} should keep is not known before the selection beside it has run; "
            f"set it, as in {controls[0]}:ratio=0.95, or leave {controls[0]} out."
        )
    known = shares - {None}
    share = known.pop() if len(known) == 1 else SSTokenConfig.from_block(block).share
    return {**arms, **({name: {**(arms[name] or {}), "ratio": share} for name in controls} if share else {})}


def _split(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Split an option into names with settings: a part with `=` and no name before it belongs to the name before."""
    found: list[tuple[str, dict[str, Any]]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        left, equals, value = part.partition("=")
        name, colon, key = left.partition(":")
        if colon or not equals:
            found.append((name.strip(), {}))
        else:
            key = name
        if not equals:
            if colon:
                raise ValueError(f"--arms: {part} has no setting; write one as in {name}:ratio=0.8.")
            continue
        if not found or not found[-1][0]:
            raise ValueError(
                f"--arms: {part} is a setting of no arm; write a name before it, as in mine:{part.lstrip(':')}."
            )
        if not value.strip():
            raise ValueError(f"--arms: {part} has no value; write one as in {key}=0.8.")
        settings, key = found[-1][1], key.strip()
        if key in settings:
            raise ValueError(f"--arms: {found[-1][0]} has {key} twice; remove one.")
        try:
            settings[key] = yaml.safe_load(value)
        # It raises the latter for a date that is none.
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"--arms: the value of {part} cannot be read; write one as in {key}=0.8.") from error
    return found


def as_json(experiment: Experiment, tables: Sequence[Table]) -> dict[str, Any]:
    """Return what compare.json holds.

    `arms` has, by name: `seeds`, and for each of them `eval_loss`, in nats a response token (null where it is not
    finite), and the same by kind of token; `mean`, `low` and `high` of eval_loss with its 95 % interval over seeds;
    `kept`, the share of response tokens that was trained on, null where a log has none. `untrained` has the losses of
    the model before training. `comparisons` are paired by seed, arm minus the other: their intervals hold together
    with 95 % for each `against`, and the verdict is that of the interval.
    """
    from sstoken_plugin.experiments.main import comparisons_json
    from sstoken_plugin.experiments.runs import runs_of

    by_name = {table.name: table for table in tables}
    deciding = by_name.get(f"{_EVALUATION}/loss")
    arms: dict[str, dict[str, Any]] = {arm.name: {"seeds": [], "eval_loss": []} for arm in experiment.arms}
    if deciding is not None:
        for arm, mean in deciding.means.items():
            arms[arm] |= {"seeds": list(deciding.seeds[arm]), "mean": mean.mean, "low": mean.low, "high": mean.high}
    before: dict[str, float | None] = {}
    for name, table in by_name.items():
        key = name.partition("/")[2].replace("loss", "eval_loss", 1)
        before[key] = table.untrained
        for arm, values in table.values.items():
            arms[arm][key] = list(values)
    for run in runs_of(experiment):
        if (result := run.result()) is not None:
            share = 1.0 if run.arm.sstoken is None else result.kept.get("selected_ratio")
            arms[result.arm].setdefault("kept", []).append(share)
    return {
        "untrained": before,
        "arms": arms,
        "comparisons": [] if deciding is None else comparisons_json(deciding),
        "smallest_difference": experiment.smallest_difference,
    }
