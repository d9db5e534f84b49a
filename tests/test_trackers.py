"""What trackers get from a run, each in its own offline mode."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write
from material import run_command

from sstoken_plugin.report.token_table import COLUMNS

BLOCK = {"warmup_ratio": 0.5, "ratio": 0.75}
# Where scripts/setup.sh installs Comet's client.
COMET = Path(sys.prefix) / "comet"


def run_of(small_run: dict[str, Any], folder: Path, settings: dict[str, Any], **environment: str) -> SimpleNamespace:
    """Run Axolotl as a user does, in a process of its own."""
    config = {**small_run, "output_dir": str(folder / "out"), "sstoken": BLOCK, **settings}
    told = run_command("python", "-m", "axolotl.cli.train", str(write(config, folder)), **environment).stdout
    page = folder / "out" / "sstoken" / "report.html"
    assert "did not take" not in told
    return SimpleNamespace(folder=folder, told=told, file=page, page=page.read_bytes())


@pytest.fixture(scope="module")
def tracked(small_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run that reports to all trackers but Comet, whose client would watch the others."""
    folder = tmp_path_factory.mktemp("tracked")
    settings = {
        "use_tensorboard": True,
        "use_wandb": True,
        "wandb_project": "test",
        "wandb_mode": "offline",
        "use_mlflow": True,
        "mlflow_experiment_name": "test",
        "mlflow_tracking_uri": (folder / "mlflow").as_uri(),
        "use_trackio": True,
    }
    environment = {
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(folder / "data"),
        "TRACKIO_DIR": str(folder / "trackio"),
        # A folder is the one store that needs no database or server.
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return run_of(small_run, folder, settings, **environment)


def texts_of(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the curves that TensorBoard shows, and its texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"tensors": 0})
    events.Reload()
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    return events.Tags()["scalars"], texts


def test_tensorboard_gets_the_curves_the_settings_a_table_and_the_path_of_the_page(tracked):
    curves, texts = texts_of(tracked.folder / "out")
    assert {"train/sstoken/selected_ratio", "train/sstoken/rel_mean"} <= set(curves)
    assert "    sstoken.ratio: 0.75\n" in texts["sstoken/settings"]
    assert texts["sstoken/tokens"].count("\n") > 40
    assert "| sample | place | token | kept |" in texts["sstoken/tokens"]
    assert texts["sstoken/report"].strip() == str(tracked.file)


def test_wandb_gets_the_settings_a_table_and_the_page(tracked):
    (file,) = tracked.folder.rglob("run-*.wandb")
    logged = file.read_bytes()
    assert b"train/sstoken/selected_ratio" in logged
    assert b'{"selector":"sstoken","ratio":0.75,' in logged
    assert b"sstoken-report-" in logged
    staged = (tracked.folder / "data" / "artifacts" / "staging").iterdir()
    assert tracked.page in [each.read_bytes() for each in staged]
    (file,) = tracked.folder.rglob("media/table/sstoken/*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(COLUMNS)
    assert {row[3] for row in table["data"]} == {True, False}


def test_mlflow_gets_the_curves_the_settings_a_table_and_the_page(tracked, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((tracked.folder / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'test'")
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "sstoken/selected_ratio")
    assert [point.step for point in points] == [1, 2, 3, 4]
    assert run.data.params["sstoken.ratio"] == "0.75"
    assert run.data.params["sstoken.keep_eos"] == "True"
    folder = Path(experiment.artifact_location.removeprefix("file://"), run.info.run_id, "artifacts", "sstoken")
    assert (folder / "report.html").read_bytes() == tracked.page
    table = json.loads((folder / "tokens-4.json").read_text())
    assert table["columns"] == list(COLUMNS)
    # What MLflow shows as tables is named here.
    assert "sstoken/tokens-4.json" in run.data.tags["mlflow.loggedArtifacts"]


def test_trackio_gets_the_curves_the_settings_a_table_and_the_page(tracked):
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage as storage
(project,) = storage.get_projects()
(run,) = storage.get_runs(project)
print(json.dumps([storage.get_run_config(project, run), storage.get_logs(project, run)]))
"""
    printed = run_command("python", "-c", code, TRACKIO_DIR=str(tracked.folder / "trackio")).stdout
    config, logs = json.loads(printed.splitlines()[-1])
    assert config["sstoken"]["ratio"] == 0.75
    assert sum("train/sstoken/selected_ratio" in line for line in logs) == 4
    (table,) = [line["sstoken/tokens"] for line in logs if "sstoken/tokens" in line]
    assert set(table["_value"][0]) == set(COLUMNS)
    blobs = (tracked.folder / "trackio" / "artifacts").rglob("blobs/sha256/*/*")
    assert tracked.page in [blob.read_bytes() for blob in blobs]


@pytest.mark.skipif(not COMET.exists(), reason="comet_ml is not in a folder of its own: scripts/setup.sh")
def test_comet_gets_the_curves_the_settings_a_table_and_the_page(small_run, tmp_path):
    settings = {
        "comet_project_name": "test",
        "comet_online": False,
        "comet_experiment_config": {"offline_directory": str(tmp_path / "comet")},
    }
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(COMET))))
    tracked = run_of(small_run, tmp_path, settings, PYTHONPATH=path, COMET_API_KEY="none")
    (file,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(file) as offline:
        contents = {name: offline.read(name) for name in offline.namelist()}
    messages = contents["messages.json"].decode()
    assert "train/sstoken/selected_ratio" in messages
    assert "sstoken.ratio" in messages
    assert tracked.page in contents.values()
    assert any(content.startswith(",".join(COLUMNS).encode()) for content in contents.values())


def test_texts_of_the_data_stay_here_if_the_settings_say_so(config, train, tmp_path):
    train({**config, "use_tensorboard": True, "sstoken": {**BLOCK, "report_upload": False}})
    _, texts = texts_of(tmp_path)
    assert "sstoken/settings" in texts
    assert not {"sstoken/tokens", "sstoken/report"} & set(texts)
    assert (tmp_path / "out" / "sstoken" / "report.html").exists()


def test_without_the_page_trackers_get_the_settings(config, train, tmp_path):
    train({**config, "use_tensorboard": True, "sstoken": {**BLOCK, "report": False}})
    _, texts = texts_of(tmp_path)
    assert {name for name in texts if name.startswith("sstoken/")} == {"sstoken/settings"}


def test_a_tracker_that_the_run_does_not_report_to_gets_nothing(config, train, tmp_path, monkeypatch):
    """As where one's own script has a run of W&B open."""
    import wandb

    for name in ("WANDB_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    with wandb.init(project="test", mode="offline") as run:
        train({**config, "sstoken": BLOCK})
        assert "sstoken" not in dict(run.config)
    (file,) = tmp_path.rglob("run-*.wandb")
    assert b"sstoken-report" not in file.read_bytes()
    assert not list(tmp_path.rglob("*.table.json"))


def test_a_tracker_that_fails_is_told_of_once_and_ends_no_training(config, train, tmp_path, monkeypatch, caplog):
    import mlflow

    # Artifacts would be below a file.
    (tmp_path / "file").write_text("")
    where = (tmp_path / "mlflow").as_uri()
    for name, value in {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": where,
        "MLFLOW_EXPERIMENT_NAME": "test",
    }.items():
        monkeypatch.setenv(name, value)
    mlflow.MlflowClient(where).create_experiment("test", (tmp_path / "file" / "artifacts").as_uri())
    settings = {"use_mlflow": True, "mlflow_tracking_uri": where, "mlflow_experiment_name": "test"}
    run = train({**config, **settings, "use_tensorboard": True, "sstoken": BLOCK})
    assert run.trainer.state.global_step == 4
    told = [record.getMessage() for record in caplog.records if "did not take" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("ssToken: MLflow did not take the table of tokens, and gets nothing else")
    _, texts = texts_of(tmp_path)
    assert "sstoken/report" in texts, "the others get all"


def test_a_run_that_is_stopped_early_gives_what_a_whole_one_gives(config, train, tmp_path, monkeypatch):
    from transformers import TrainerCallback, trainer

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Stop])
    run = train({**config, "use_tensorboard": True, "sstoken": BLOCK})
    assert run.trainer.state.global_step == 3
    _, texts = texts_of(tmp_path)
    assert {"sstoken/settings", "sstoken/tokens", "sstoken/report"} <= set(texts)


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_rank_alone_gives(tmp_path, is_first):
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerControl, TrainerState
    from transformers.integrations import TensorBoardCallback

    from sstoken_plugin.report.trackers import Trackers

    with SummaryWriter(str(tmp_path)) as writer:
        handler = SimpleNamespace(callbacks=[TensorBoardCallback(writer)])
        trackers = Trackers(SimpleNamespace(callback_handler=handler), {"ratio": 0.75})
        state = TrainerState(is_world_process_zero=is_first)
        trackers.on_train_begin(None, state, TrainerControl())
        for _ in range(2):
            trackers.on_step_begin(None, state, TrainerControl())
    assert ("sstoken/settings" in texts_of(tmp_path)[1]) == is_first
