"""`axolotl sstoken-compare`: the shortest useful experiment, on a YAML that is there anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sstoken_plugin.base.files import expand
from sstoken_plugin.base.told import told_in_a_sentence
from sstoken_plugin.experiments.arms_option import CONTROLS, PLAIN, arms_of
from sstoken_plugin.experiments.config import MOST_SEEDS, Experiment, parse
from sstoken_plugin.experiments.yaml_file import read_mapping
from sstoken_plugin.selection.config import SSTokenConfig

if TYPE_CHECKING:
    from sstoken_plugin.experiments.comparison import Table
    from sstoken_plugin.experiments.runs import Run

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
    from sstoken_plugin.experiments.conclude import Files, conclude, refuse_files_of_others
    from sstoken_plugin.experiments.have import have
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
    files = Files(page, f"Does ssToken help? {Path(config).name}", numbers, partial(as_json, runs.trainings))
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


def as_json(runs: Sequence[Run], experiment: Experiment, tables: Sequence[Table]) -> dict[str, Any]:
    """Return what compare.json holds, of an experiment with these trainings.

    `arms` has, by name: `seeds`, and for each of them `eval_loss`, in nats a response token (null where it is not
    finite), and the same by kind of token; `mean`, `low` and `high` of eval_loss with its 95 % interval over seeds;
    `kept`, the share of response tokens that was trained on, null where a log has none. `untrained` has the losses of
    the model before training. `comparisons` are paired by seed, arm minus the other: their intervals hold together
    with 95 % for each `against`, and the verdict is that of the interval.
    """
    from sstoken_plugin.experiments.numbers import comparisons_json

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
    for run in runs:
        # Of those that are in the tables: another process may have had more meanwhile.
        if run.seed in arms[run.arm.name]["seeds"] and (result := run.result()) is not None:
            share = 1.0 if run.arm.sstoken is None else result.kept.get("selected_ratio")
            arms[run.arm.name].setdefault("kept", []).append(share)
    return {
        "untrained": before,
        "arms": arms,
        "comparisons": [] if deciding is None else comparisons_json(deciding),
        "smallest_difference": experiment.smallest_difference,
    }
