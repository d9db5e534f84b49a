"""The runs of an experiment: one arm with one seed each, a folder of its own each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sstoken_plugin.axolotl import experiment as axolotl
from sstoken_plugin.base.visible_text import cut
from sstoken_plugin.experiments.config import UNTRAINED, Arm, Experiment
from sstoken_plugin.experiments.inputs import (
    WHOLE,
    data_files,
    digest_of,
    entries_of,
    refuse_among_inputs,
    templates_of,
    weights_of,
    words_of,
)
from sstoken_plugin.experiments.results import NAME as RESULT
from sstoken_plugin.experiments.results import TRAINED, Result, read_json, read_result
from sstoken_plugin.selection.config import SSTokenConfig

# Where a run puts things, which says nothing about what it is.
_FOLDERS = ("output_dir", "dataset_prepared_path")
# What data do not depend on, of the keys that arms differ in. Another key makes data of their own, which costs time:
# the name by which Axolotl finds prepared data leaves out the seed, the order and what is too long, among others.
_NOT_OF_DATA = (
    *_FOLDERS, "sstoken", "num_epochs", "max_steps", "learning_rate", "optimizer", "optim_args", "lr_scheduler",
    "lr_scheduler_kwargs", "weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio", "micro_batch_size",
    "gradient_accumulation_steps", "adapter", "lora_model_dir", "use_dft",
)  # fmt: skip
_PREFIXES_NOT_OF_DATA = ("lora_", "adam_")
_MOST_DIFFERENCES = 4
# Keys of the `sstoken:` block that say what is shown of a training, and nothing of what it does.
_NOT_OF_TRAINING = {"report", "report_samples", "report_seconds", "report_upload"}


@dataclass(frozen=True)
class Run:
    """One training with its evaluations, or the evaluations of the model before training.

    Attributes:
        arm: what is trained.
        seed: of the training.
        folder: holds all of it.
        settings: everything that its result depends on, for as far as the YAML says; no `train`, nothing is trained.
    """

    arm: Arm
    seed: int
    folder: Path
    settings: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """A hash of the settings, but for those that decide no result."""
        return _fingerprint_of(self.settings)

    @property
    def fingerprint_with_defaults(self) -> str:
        """Of a training: `fingerprint`, with the defaults of the keys that its `sstoken:` block leaves out.

        Without those that say what is shown of it alone.
        """
        train = self.settings["train"]
        if train.get("sstoken") is None:
            return self.fingerprint
        block = SSTokenConfig.from_block(train["sstoken"]).model_dump(exclude=_NOT_OF_TRAINING)
        return _fingerprint_of({**self.settings, "train": {**train, "sstoken": block}})

    @property
    def name(self) -> str:
        """How users call it."""
        return f"{self.arm.name}, seed {self.seed}" if self.is_training else "the untrained model"

    @property
    def is_training(self) -> bool:
        """Whether anything is trained."""
        return "train" in self.settings

    def result(self) -> Result | None:
        """Return its result, None where there is none of these settings; see `read_result`."""
        found = read_result(self.folder)
        # The folder says which arm it is of: its name is no part of the settings, and may have changed.
        return replace(found, arm=self.arm.name) if found is not None and self._is_of(found) else None

    def _is_of(self, found: Result) -> bool:
        """Tell whether a result is of these settings; of data files that are not here, its own word counts."""
        here = self.settings["data"]
        data = {file: digest for file, digest in found.settings["data"].items() if file in here}
        return _fingerprint_of({**found.settings, "data": data}) == self.fingerprint

    def refuse_other_settings(self) -> None:
        """Refuse a folder in which a run of other settings was begun or finished.

        Raises:
            ValueError: there is one, or what is there cannot be read; one sentence with what differs and the way out.
        """
        # Of a finished one the data need not be here, by which its settings would be others.
        if self.result() is None:
            refuse_work_of_others(self.folder, self.fingerprint, self.settings, self.is_taken)

    def is_taken(self) -> bool:
        """Tell whether a process has it just now.

        Raises:
            ValueError: its lock is another user's; one sentence with the way out.
        """
        if not self.folder.is_dir():
            return False
        try:
            with FileLock(self.folder / "lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError as error:
            raise ValueError(
                f"{self.folder / 'lock'} cannot be had ({error.strerror}); give the same command as the user who began "
                "the experiment, or name another folder."
            ) from error


@dataclass(frozen=True)
class Runs:
    """All runs of an experiment, of the files as they are when it is asked for.

    Attributes:
        trainings: see `runs_of`.
        untrained: see `untrained_of`.
    """

    trainings: Sequence[Run]
    untrained: Run

    @classmethod
    def of(cls, experiment: Experiment) -> Runs:
        """Return the runs of an experiment.

        Raises:
            ValueError: see `refuse_among_inputs` and `digest_of`.
        """
        refuse_among_inputs(experiment)
        return cls(runs_of(experiment), untrained_of(experiment))

    def __iter__(self) -> Iterator[Run]:
        """Yield all of them."""
        yield from self.trainings
        yield self.untrained

    def refuse_other_settings(self) -> None:
        """See `Run.refuse_other_settings`."""
        for run in self:
            run.refuse_other_settings()

    def files(self) -> dict[str, str]:
        """Return the files that results depend on beside the YAML, and their digests."""
        return {file: digest for run in self for file, digest in run.settings["data"].items()}


def refuse_work_of_others(
    folder: Path, fingerprint: str, settings: Mapping[str, Any], is_taken: Callable[[], bool] = lambda: False
) -> None:
    """Refuse a run's folder in which more has come of other settings than a failure before the first checkpoint.

    Args:
        folder: of the run.
        fingerprint: of its settings.
        settings: its settings.
        is_taken: tells whether another process is at work there, which is work too; who has its lock knows.

    Raises:
        ValueError: there is such work; one sentence with what differs and the way out.
    """
    begun = settings_begun(folder)
    if begun.get("fingerprint") == fingerprint:
        return
    is_kept = any((folder / name).exists() for name in (RESULT, TRAINED)) or any((folder / "out").glob("checkpoint-*"))
    if not (is_kept or is_taken()):
        return
    before = begun.get("settings")
    told = differences(before, settings) if isinstance(before, Mapping) else []
    raise ValueError(
        f"{folder} holds a run of other settings ({cut('; '.join(told) or 'they cannot be read', 600)}); "
        "name another folder (`out:`, or --out of sstoken-compare), undo the change, or remove "
        f"{folder.parent} to have the runs of this arm anew."
    )


def settings_begun(folder: Path) -> Mapping[str, Any]:
    """Return what a run's folder says of the settings that were begun there last; nothing where that is not known."""
    return read_json(folder / "run.json") or read_json(folder / RESULT) or {}


def runs_of(experiment: Experiment) -> list[Run]:
    """Return every training, seed by seed, so that what is there early compares all arms."""
    yamls = ((arm, axolotl.yaml_of_arm(experiment.base, arm.sstoken, arm.changes)) for arm in experiment.arms)
    of_arms = [(arm, _settings(experiment, train)) for arm, train in yamls]
    return [_run(experiment, arm, seed, settings) for seed in experiment.seeds for arm, settings in of_arms]


def untrained_of(experiment: Experiment) -> Run:
    """Return the evaluations of the model that all arms start from."""
    return _run(experiment, Arm(UNTRAINED, None), 0, _settings(experiment, None))


def _run(experiment: Experiment, arm: Arm, seed: int, settings: Mapping[str, Any]) -> Run:
    return Run(arm, seed, experiment.out / "runs" / arm.name / f"seed-{seed}", {**settings, "seed": seed})


def _settings(experiment: Experiment, train: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of an arm's runs but for the seed, without a training where there is no YAML of one."""
    held_out = axolotl.yaml_of_arm(experiment.base, None, {})
    evaluations = {name: asked.model_dump() for name, asked in experiment.evaluations.items()}
    asked = _entries_of_evaluations(evaluations)
    begin = held_out if train is None else train
    files = data_files([*entries_of(begin), *entries_of(held_out), *asked])
    files |= words_of(held_out) | words_of(begin) | templates_of(asked)
    digests = {file: digest_of(file) for file in files} | {file: digest_of(file, WHOLE) for file in weights_of(begin)}
    settings = {
        **({} if train is None else {"train": _without_folders(train)}),
        "held_out": _without_folders(held_out),
        "evaluations": evaluations,
        "data": {str(file): digest for file, digest in sorted(digests.items())},
    }
    return plain(settings)


def fingerprint_of_all(runs: Sequence[Run]) -> str:
    """Return a hash of the settings of all arms, whatever the seeds."""
    return fingerprint([_fingerprint_of({**run.settings, "seed": 0}) for run in first_of_arms(runs)])


def first_of_arms(runs: Sequence[Run]) -> list[Run]:
    """Return a run of each arm: they differ in the seed alone."""
    found: dict[str, Run] = {}
    for run in runs:
        found.setdefault(run.arm.name, run)
    return list(found.values())


def part_of(runs: Sequence[Run], part: str | None) -> list[Run]:
    """Return the K-th of N parts of a list of runs, for the K-th of N machines; whole seeds stay together if they can.

    Args:
        runs: the list.
        part: "K/N", K from 1; None is all of it.

    Raises:
        ValueError: it is no part.
    """
    if part is None:
        return list(runs)
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"--part: {part} is no part of a list; write K/N with K from 1 to N, as in 2/3.")
    first, last = (len(runs) * edge // int(parts) for edge in (int(number) - 1, int(number)))
    return list(runs[first:last])


def train_yaml(run: Run, out: Path) -> dict[str, Any]:
    """Return the YAML of a run's training, with its folders and the losses that it shares with other arms."""
    found = {
        **run.settings["train"],
        "output_dir": str(run.folder / "out"),
        "dataset_prepared_path": str(data_folder(run, out)),
    }
    if run.arm.sstoken is not None:
        # A page of each run would cost time, and nobody reads them all.
        found["sstoken"] = {"report": False, **found["sstoken"]}
    if axolotl.can_share_losses(found):
        found["sstoken"] = {**found["sstoken"], "history_cache": str(out / "history")}
    return found


def held_out_yaml(run: Run, out: Path) -> dict[str, Any]:
    """Return the YAML by which a run's evaluations prepare their data."""
    return {**run.settings["held_out"], "dataset_prepared_path": str(data_folder(run, out, "held_out"))}


def data_folder(run: Run, out: Path, of: str = "train") -> Path:
    """Return the folder of the data that Axolotl prepares for a training; runs of the same data share it.

    Args:
        run: the run.
        out: folder of the experiment.
        of: which YAML of the run's settings.
    """
    found = run.settings[of]
    own = {
        key: value
        for key, value in found.items()
        if key not in _NOT_OF_DATA and not key.startswith(_PREFIXES_NOT_OF_DATA)
    }
    own["plugins"] = [name for name in found["plugins"] if name != axolotl.PLUGIN]
    asked = _entries_of_evaluations(run.settings["evaluations"]) if of == "held_out" else []
    files = {str(file) for file in data_files([*entries_of(found), *asked]) | words_of(found) | templates_of(asked)}
    digests = {file: digest for file, digest in run.settings["data"].items() if file in files}
    return out / "prepared" / fingerprint([own, digests])[:16]


def _entries_of_evaluations(evaluations: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for asked in evaluations.values() for entry in asked.get("datasets") or ()]


def _fingerprint_of(settings: Mapping[str, Any]) -> str:
    # What memory there is says how many at once; nobody trains anew because it was too little.
    evaluations = {
        name: {key: value for key, value in asked.items() if key != "batch_size"}
        for name, asked in settings["evaluations"].items()
    }
    return fingerprint({**settings, "evaluations": evaluations})


def fingerprint(settings: Any) -> str:
    """Return a hash of what JSON can hold."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two settings, a phrase for each key, the first few."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**new, **old} if (key in old, old.get(key)) != (key in new, new.get(key))]
    told = [f"{key} was {_shown(old, key)} and is {_shown(new, key)}" for key in keys[:_MOST_DIFFERENCES]]
    return told + ([f"{len(keys) - len(told)} more"] if len(keys) > len(told) else [])


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return cut(str(flat[key]), 60) if key in flat else "not there"


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Yield keys, with dots, and values."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    # An empty block is something else than none.
    if inner is None or not value:
        yield key, value
        return
    for name, part in inner:
        yield from _flat(part, f"{key}.{name}" if key else str(name))


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they come back from a file."""
    # Of what is no number JSON has none: Axolotl reads "Infinity" as `.inf`.
    found: dict[str, Any] = json.loads(json.dumps(settings, default=str), parse_constant=str)
    return found


def _without_folders(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in _FOLDERS}
