"""What experiments and commands need of Axolotl: its data, its training and its models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sstoken_plugin.axolotl import compatibility, refusals
from sstoken_plugin.base.files import expand
from sstoken_plugin.selection.config import nearest

if TYPE_CHECKING:
    from sstoken_plugin.selection.turns import EndTokens

# What a run of many must not do on its own: choose by the data that arms are compared on, or upload.
SWITCHED_OFF = (
    "eval_steps", "evals_per_epoch", "evaluation_strategy", "eval_on_start", "do_bench_eval", "do_causal_lm_eval",
    "eval_table_size", "load_best_model_at_end", "early_stopping_patience", "metric_for_best_model",
    "greater_is_better", "save_steps", "saves_per_epoch", "save_first_step", "save_only_model",
    "resume_from_checkpoint", "hub_model_id", "hub_strategy", "push_dataset_to_hub",
)  # fmt: skip
# All of their keys: for most of them Axolotl takes the name of a project as a wish to track.
_TRACKERS = ("wandb", "mlflow", "comet", "trackio", "tensorboard", "swanlab", "otel")
# What every run has, whatever its YAML says.
_OF_A_RUN: dict[str, Any] = {
    # What a run kept is read from its log, which must have all of its steps.
    "logging_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "save_total_limit": 1,
    "auto_resume_from_checkpoints": True,
}
# The same, of folders and of arms.
_OF_AN_EXPERIMENT = ("sstoken", "output_dir", "dataset_prepared_path")
# How an arm with a selection names the plugin.
PLUGIN = "sstoken_plugin.SSTokenPlugin"
# Where several processes or a server would have a part in a training that is one process here.
SEVERAL_PROCESSES = ("deepspeed", "fsdp", "fsdp_config", "use_ray")
# Axolotl's own default.
DEFAULT_SEED = 42


def yaml_of_arm(
    base: Mapping[str, Any], sstoken: Mapping[str, Any] | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the YAML that an arm trains by, but for folders.

    Args:
        base: the YAML that all arms start from. What it says of the selection counts for none of them.
        sstoken: the arm's `sstoken:` block; None is plain training.
        changes: other keys.
    """
    found = {
        key: value
        for key, value in {**base, **changes}.items()
        if key not in (*SWITCHED_OFF, "sstoken") and not is_of_tracker(key)
    }
    plugins = found.get("plugins") or []
    if not isinstance(plugins, list):
        raise ValueError(f"plugins: {plugins!r} is not a list; write one, as in `plugins: [sstoken]`.")
    found["plugins"] = [
        name for name in plugins if not (compatibility.names_us({"plugins": [name]}) or _is_tracker(str(name)))
    ]
    if sstoken is not None:
        found["plugins"].append(PLUGIN)
        found["sstoken"] = dict(sstoken)
    # The split into training and evaluation data follows from it, so that it is the same in every run.
    found["seed"] = DEFAULT_SEED if base.get("seed") is None else base["seed"]
    if found.get("sample_packing"):
        # The evaluation set of a packed training may be too small to be packed, which nobody asks for.
        found["eval_sample_packing"] = False
    return found | _OF_A_RUN


def has_no_effect(key: str) -> bool:
    """Tell whether a run is the same whatever the YAML says of a key."""
    return key in (*SWITCHED_OFF, *_OF_A_RUN, *_OF_AN_EXPERIMENT) or is_of_tracker(key)


def is_of_tracker(key: str) -> bool:
    """Tell whether a key of a YAML is about a tracker of experiments."""
    return key.removeprefix("use_").removeprefix("hf_").startswith(_TRACKERS)


def that_can_be_shown(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a YAML without the keys of trackers and those that hold what nobody else should read."""
    secret = ("_key", "_token", "_secret", "_password")
    return {key: value for key, value in found.items() if not (is_of_tracker(key) or key.lower().endswith(secret))}


def _is_tracker(plugin: str) -> bool:
    """Tell whether a plugin is one of Axolotl's for a tracker, which wants the keys of the tracker."""
    return any(part.startswith(_TRACKERS) for part in plugin.split("."))


def yaml_of_trained(trained: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the YAML by which a trained model is evaluated: the plugin has no part in it.

    Args:
        trained: the YAML of its training.
        folder: of the trained adapter or model.
    """
    found = yaml_of_arm(trained, None, {})
    if found.get("adapter"):
        return {**found, "lora_model_dir": str(folder)}
    # Of a revision the training has left the tokenizer beside its weights.
    begins_from = folder if found.get("revision_of_model") else found["base_model"]
    own = {"tokenizer_config": str(found.get("tokenizer_config") or begins_from), "reinit_weights": None}
    return {**found, **own, "base_model": str(folder), "base_model_config": str(folder), "revision_of_model": None}


def check(found: Mapping[str, Any]) -> None:
    """Refuse an arm's YAML that does not go with an experiment or the selection, by the keys alone.

    Raises:
        ValueError: one sentence with key and fix.
    """
    for key in SEVERAL_PROCESSES:
        if found.get(key):
            raise ValueError(
                f"{key} is for several processes, and an experiment trains each run in one; remove the key for it, and "
                "give each GPU its part of the runs with --part and CUDA_VISIBLE_DEVICES."
            )
    if compatibility.names_us(found):
        compatibility.check(found)


def can_share_losses(found: Mapping[str, Any]) -> bool:
    """Tell whether an arm may keep the losses of its history where other arms find them."""
    settings = compatibility.check(found) if compatibility.names_us(found) else None
    return bool(
        settings and settings.may_keep_losses and not any(found.get(key) for key in refusals.REFUSED_WITH_CACHE)
    )


def load(file: Path) -> Any:
    """Return the validated configuration of a YAML file.

    Raises:
        ValueError: Axolotl or the plugin refuses it.
    """
    import torch
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    # Those of the YAML before: a process reads the YAMLs of several arms.
    PluginManager.get_instance().plugins.clear()
    cfg = load_cfg(str(file))
    if not torch.accelerator.is_available():
        cfg.device_map = "cpu"
    return cfg


def tokenizer_of(cfg: Any) -> Any:
    """Return the tokenizer of a configuration."""
    from axolotl.loaders import load_tokenizer

    return load_tokenizer(cfg)


def refuse_other_vocabulary(cfg: Any) -> None:
    """Refuse the history that a configuration names where it does not know the tokens of the run.

    A run does so itself, as it begins; in an experiment that may be after hours.

    Raises:
        ValueError: one sentence with key and fix.
    """
    from sstoken_plugin.history import given

    settings = compatibility.check(cfg) if compatibility.names_us(cfg) else None
    if settings and settings.needs_history and settings.history_is_path:
        given.refuse_other_vocabulary(expand(settings.history), tokenizer_of(cfg))


def data_of(cfg: Any) -> Any:
    """Return the prepared data as Axolotl's own training gets them, with `train_dataset` and `eval_dataset`."""
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager

    return PluginManager.get_instance().load_datasets(cfg, preprocess=False) or load_datasets(cfg=cfg)


def refuse_unknown(keys: Iterable[str], place: str) -> None:
    """Refuse keys that Axolotl, with the plugins of the YAML that was loaded last, would drop without a word.

    Args:
        keys: the keys.
        place: where they stand.

    Raises:
        ValueError: one is unknown; one sentence with the fix.
    """
    from axolotl.integrations.config import merge_input_args

    _, schema = merge_input_args()
    known = {name for key, field in schema.model_fields.items() for name in (key, field.alias) if name}
    for key in keys:
        if key not in known:
            raise ValueError(
                f"{place}.{key} is no key of this Axolotl, which would train as if it were not there; the nearest one "
                f"is {nearest(key, known)}."
            )


def autocast_of(cfg: Any) -> Any:
    """Return the dtype of training's autocast, None where it has none."""
    return cfg.torch_dtype if cfg.bf16 or cfg.fp16 else None


def precision_of(model: Any, autocast: Any) -> Callable[[], Any]:
    """Return what makes the context in which training runs the model, see `autocast_of`."""
    import torch

    return lambda: torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None)


def rows_of(base: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]], folder: Path) -> Any:
    """Return samples of other data sets, prepared as those of a YAML are.

    Args:
        base: the YAML.
        datasets: entries as in its `datasets:`.
        folder: for a YAML of them.

    Raises:
        ValueError: Axolotl refuses them.
    """
    others = {
        **yaml_of_arm(base, None, {}),
        "datasets": [dict(entry) for entry in datasets],
        "test_datasets": None,
        "val_set_size": 0,
        "sample_packing": False,
        "eval_sample_packing": None,
        "shuffle_merged_datasets": False,
        # A length of training has nothing to do with it, and may not go with so few samples.
        "max_steps": 1,
        "output_dir": str(folder / "unused"),
        # Of the same files, which a training has in another order, Axolotl gives prepared data the same name.
        "dataset_prepared_path": str(Path(base["dataset_prepared_path"]) / "evaluations"),
    }
    file = write(others, folder / "evaluation.yaml")
    return data_of(load(file)).train_dataset


def write(found: Mapping[str, Any], file: Path) -> Path:
    """Write a YAML and return its file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(found), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def train(file: Path, seed: int, callbacks: Iterable[Any] = ()) -> tuple[list[dict[str, Any]], int]:
    """Train by a YAML, from its last checkpoint if it has one.

    The seed decides the first weights of an adapter, the order of the samples and dropout; the split into training and
    evaluation data is that of the YAML's own seed.

    Args:
        file: the YAML.
        seed: of the training.
        callbacks: of transformers' `TrainerCallback`, which the trainer gets.

    Returns:
        The lines of the training's log, and the number of its optimizer steps.
    """
    from axolotl.train import train as axolotl_train
    from transformers import set_seed, trainer

    from sstoken_plugin.engine.modes import replaced

    cfg = load(file)
    data = data_of(cfg)
    cfg.seed = seed
    if cfg.data_seed is not None:
        cfg.data_seed = seed
    set_seed(seed)
    # What the trainer of any configuration takes up, and the YAML cannot name.
    with replaced(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, *callbacks]):
        model, tokenizer, done = axolotl_train(cfg=cfg, dataset_meta=data)
    log, steps = list(done.state.log_history), int(done.state.global_step)
    del model, tokenizer, done
    gc.collect()
    return log, steps


@dataclass(frozen=True)
class Trained:
    """A model to evaluate.

    Attributes:
        model: in evaluation mode, with its adapter.
        tokenizer: its tokenizer.
        ends: what can end a turn.
        autocast: see `autocast_of`.
    """

    model: Any
    tokenizer: Any
    ends: EndTokens
    autocast: Any = None

    def precision(self) -> Any:
        """Return the context in which training runs the model."""
        return precision_of(self.model, self.autocast)()


def trained_model(file: Path) -> Trained:
    """Return the model of a YAML."""
    from axolotl.cli.utils import load_model_and_tokenizer

    from sstoken_plugin.axolotl.run import run_of
    from sstoken_plugin.training.setup import end_tokens

    cfg = load(file)
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg, inference=True)
    return Trained(model.eval(), tokenizer, end_tokens(run_of(cfg), model, tokenizer), autocast_of(cfg))
