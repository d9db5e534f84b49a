"""The trackers that a run reports to, each as transformers' callback has opened it.

Metrics are in the trainer's own log lines, which those callbacks pass on. What is added here: the settings, a table of
tokens and the page.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import (
    CometCallback,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from sstoken_plugin.base.attempt import attempt
from sstoken_plugin.report.token_table import COLUMNS, markdown

BLOCK = "sstoken"
TABLE, PAGE = "sstoken/tokens", "sstoken/report"


class Tracker(ABC):
    """One tracker, while the run that it tracks is open.

    Attributes:
        name: as its users call it.
        callback: transformers' callback that reports to it.
    """

    name: str
    callback: type[TrainerCallback]

    def __init__(self, run: Any):
        self._run = run

    @classmethod
    @abstractmethod
    def open_run(cls, callback: Any) -> Any:
        """Return the run that a callback reports to; None where there is none."""

    @abstractmethod
    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Put the `sstoken:` block into the configuration of the run.

        Args:
            settings: every key of the block, in JSON's types.
        """

    @abstractmethod
    def add_table(self, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a table of tokens, see `token_table`, at a step of the run."""

    @abstractmethod
    def add_page(self, file: Path, step: int) -> None:
        """Log the page, written at a step of the run, as an artifact."""


class Wandb(Tracker):
    """Weights & Biases: `wandb_project` of Axolotl."""

    name, callback = "W&B", WandbCallback

    @classmethod
    def open_run(cls, callback: Any) -> Any:
        """Return the run of this process."""
        import wandb

        return wandb.run

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Set the entry `sstoken` of the run's config."""
        self._run.config.update({BLOCK: dict(settings)}, allow_val_change=True)

    def add_table(self, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a W&B Table."""
        import wandb

        # The step is the axis that transformers defines.
        table = wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._run.log({TABLE: table, "train/global_step": step})

    def add_page(self, file: Path, step: int) -> None:
        """Log an artifact of type `report`."""
        import wandb

        artifact = wandb.Artifact(f"sstoken-report-{self._run.id}", type="report", metadata={"step": step})
        artifact.add_file(str(file))
        self._run.log_artifact(artifact)


class TensorBoard(Tracker):
    """TensorBoard, `use_tensorboard` of Axolotl: it has texts in place of a configuration, and no artifacts."""

    name, callback = "TensorBoard", TensorBoardCallback

    @classmethod
    def open_run(cls, callback: Any) -> Any:
        """Return the callback's writer."""
        return callback.tb_writer

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Add a text with a line for each key."""
        # Markdown shows lines as they are where they are indented.
        lines = [f"    {key}: {json.dumps(value)}" for key, value in _dotted(settings).items()]
        self._run.add_text(f"{BLOCK}/settings", "\n".join(lines))

    def add_table(self, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Add a text with a table."""
        self._run.add_text(TABLE, markdown(rows), step)

    def add_page(self, file: Path, step: int) -> None:
        """Add a text with the path."""
        self._run.add_text(PAGE, f"    {file}", step)


class MLflow(Tracker):
    """MLflow: `mlflow_experiment_name` of Axolotl."""

    name, callback = "MLflow", MLflowCallback

    @classmethod
    def open_run(cls, callback: Any) -> Any:
        """Return the run of this thread."""
        import mlflow

        # What is logged without one would open another.
        return mlflow.active_run()

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Log a parameter `sstoken.KEY` for each key."""
        import mlflow

        mlflow.log_params(_dotted(settings))

    def add_table(self, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log the artifact sstoken/tokens-STEP.json, which MLflow shows as a table."""
        import mlflow

        # Rows of a table that is there already would be added to it.
        table = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}
        mlflow.log_table(table, f"{TABLE}-{step}.json")

    def add_page(self, file: Path, step: int) -> None:
        """Log the artifact sstoken/report.html."""
        import mlflow

        mlflow.log_artifact(str(file), BLOCK)


class Comet(Tracker):
    """Comet: `comet_project_name` of Axolotl."""

    name, callback = "Comet", CometCallback

    @classmethod
    def open_run(cls, callback: Any) -> Any:
        """Return the experiment of this process."""
        import comet_ml

        return comet_ml.get_running_experiment()

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Log a parameter `sstoken.KEY` for each key."""
        self._run.log_parameters(_dotted(settings))

    def add_table(self, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log sstoken/tokens.csv, which Comet shows as a table."""
        self._run.log_table(f"{TABLE}.csv", tabular_data=[list(row) for row in rows], headers=list(COLUMNS))

    def add_page(self, file: Path, step: int) -> None:
        """Log the asset sstoken/report.html."""
        self._run.log_asset(str(file), file_name=f"{PAGE}.html", overwrite=True, step=step)


class Trackio(Tracker):
    """Trackio: `trackio_project_name` of Axolotl."""

    name, callback = "Trackio", TrackioCallback

    @classmethod
    def open_run(cls, callback: Any) -> Any:
        """Return the run of this thread."""
        import trackio

        return trackio.context_vars.current_run.get()

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Set the entry `sstoken` of the run's config, which goes with its first log line."""
        self._run.config[BLOCK] = dict(settings)

    def add_table(self, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a Trackio Table."""
        import trackio

        table = trackio.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        trackio.log({TABLE: table, "train/global_step": step})

    def add_page(self, file: Path, step: int) -> None:
        """Log an artifact of type `report`."""
        import trackio

        trackio.log_artifact(file, name="sstoken-report", type="report")


KINDS: tuple[type[Tracker], ...] = (Wandb, TensorBoard, MLflow, Comet, Trackio)


class Trackers(TrainerCallback):
    """All trackers that a trainer reports to. They get the settings from here, and what else there is by `give`.

    One that fails is told of once and left alone from then on, because no picture is worth a training.

    Args:
        trainer: the trainer.
        settings: every key of the `sstoken:` block, in JSON's types.
    """

    def __init__(self, trainer: Trainer, settings: Mapping[str, Any]):
        self._trainer = trainer
        self._settings = settings
        self._has_settings = False
        self._failed: set[type[Tracker]] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew."""
        self._has_settings = False
        self._failed.clear()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the settings once: by now trackers have begun, those in callbacks behind this one too."""
        if not self._has_settings and state.is_world_process_zero:
            self.give("the settings", lambda tracker: tracker.add_settings(self._settings))
        self._has_settings = True

    def give(self, what: str, add: Callable[[Tracker], None]) -> None:
        """Let something be added to each run that is open; for the first rank alone.

        Args:
            what: what is added, in words.
            add: adds it to the run of one tracker.
        """
        for callback in self._trainer.callback_handler.callbacks:
            kind = next((kind for kind in KINDS if isinstance(callback, kind.callback)), None)
            if kind is None or kind in self._failed:
                continue
            loss = f"{kind.name} did not take {what}, and gets nothing else of the selection but its metrics"
            if not attempt(loss, partial(_add, kind, callback, add)):
                self._failed.add(kind)


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under their names in a YAML, `sstoken.KEY`."""
    return {f"{BLOCK}.{key}": value for key, value in settings.items()}


def _add(kind: type[Tracker], callback: Any, add: Callable[[Tracker], None]) -> bool:
    run = kind.open_run(callback)
    if run is not None:
        add(kind(run))
    return True
