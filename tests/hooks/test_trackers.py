"""Weights & Biases and MLflow: with stand-ins that note what they are told, and with the packages themselves, offline."""

import logging
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from toy import make_trainer

from hooks import LogHook
from hooks.trackers import MlflowWriter, WandbWriter
from hooks.writers import as_picture

ODD = {"val/AP/C++ (old)": 0.5, "train/loss": math.nan, "train/grad_norm": math.inf}
SETTINGS = {"model": {"variant": "pico"}, "hooks": []}


class FakeWandb:
    """Notes runs as W&B would get them: the arguments of `init`, and the rows."""

    def __init__(self, is_broken=False):
        self.runs, self.is_broken = [], is_broken

    def init(self, **arguments):
        run = SimpleNamespace(id=arguments["id"] or f"new{len(self.runs)}", arguments=arguments, rows=[], is_finished=False)
        run.log, run.finish = lambda row, step: self.log(run, row, step), lambda: setattr(run, "is_finished", True)
        self.runs.append(run)
        return run

    def Image(self, pixels):
        return pixels.shape

    def log(self, run, row, step):
        if self.is_broken:
            raise ConnectionError("no network")
        run.rows.append((step, row))


class FakeMlflow:
    """Notes experiments, parameters and metrics as a tracking server would get them."""

    def __init__(self, is_broken=False):
        self.experiments, self.runs, self.is_broken = [], {}, is_broken
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (key, value, step), Param=lambda key, value: (key, value)
        )

    def MlflowClient(self):
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments.index(name)) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return len(self.experiments) - 1

    def create_run(self, experiment_id, run_name):
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {"status": "RUNNING", "name": run_name, "metrics": [], "params": []}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self.runs[run_id]["status"] = status

    def set_terminated(self, run_id):
        self.runs[run_id]["status"] = "FINISHED"

    def log_image(self, run_id, pixels, name):
        self.runs[run_id]["images"] = [*self.runs[run_id].get("images", []), (name, pixels.shape)]

    def log_batch(self, run_id, metrics=(), params=()):
        if self.is_broken and metrics:
            raise ConnectionError("no network")
        assert len(metrics) <= 1000 and len(params) <= 100, "what a server takes at once"
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] += params


@pytest.fixture
def fake_wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    return fake


@pytest.fixture
def fake_mlflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", fake := FakeMlflow())
    return fake


def write_three_times(make):
    """A run, the same run resumed after step 2, and a fresh one in the same folder."""
    for start, step in ((0, 2), (2, 4), (0, 2)):
        writer = make()
        writer.rewind(start)
        writer.write(ODD, step, 1)
        writer.close()


def test_wandb_gets_rows_and_goes_on_with_the_same_run(fake_wandb, tmp_path):
    write_three_times(lambda: WandbWriter(tmp_path / "mine", "detectors", SETTINGS))
    assert [run.arguments["id"] for run in fake_wandb.runs] == [None, "new0", None]
    assert [run.rows for run in fake_wandb.runs] == [[(step, {**ODD, "epoch": 1})] for step in (2, 4, 2)]
    assert all(run.is_finished for run in fake_wandb.runs)
    arguments = fake_wandb.runs[0].arguments
    assert (arguments["project"], arguments["name"], arguments["config"]) == ("detectors", "mine", SETTINGS)
    assert arguments["dir"] == str(tmp_path / "mine")


def test_mlflow_gets_metrics_and_goes_on_with_the_same_run(fake_mlflow, tmp_path):
    write_three_times(lambda: MlflowWriter(tmp_path / "mine", "detectors", SETTINGS))
    assert fake_mlflow.experiments == ["detectors"] and list(fake_mlflow.runs) == ["run0", "run1"]
    first = fake_mlflow.runs["run0"]
    assert (first["name"], first["status"]) == ("mine", "FINISHED")
    assert first["params"] == [("model.variant", "pico"), ("hooks", "[]")]
    assert [metric for metric in first["metrics"] if metric[0] == "val/AP/C__ _old_"] == [
        ("val/AP/C__ _old_", 0.5, 2), ("val/AP/C__ _old_", 0.5, 4)
    ]  # fmt: skip
    assert len(first["metrics"]) == 2 * (len(ODD) + 1)


def test_pictures_go_to_both(fake_wandb, fake_mlflow, tmp_path):
    for writer in (WandbWriter(tmp_path, "detectors"), MlflowWriter(tmp_path, "detectors")):
        writer.write_image("my/picture (1)", as_picture(torch.zeros(3, 4, 6)), 5, 1)
        writer.close()
    assert fake_wandb.runs[0].rows == [(5, {"my/picture (1)": (4, 6, 3)})]
    assert fake_mlflow.runs["run0"]["images"] == [("my/picture _1_-5.png", (4, 6, 3))]


def test_mlflow_gets_many_classes_in_portions(fake_mlflow, tmp_path):
    scalars = {f"val/AP/{number}": 0.5 for number in range(1203)}
    MlflowWriter(tmp_path, "detectors").write(scalars, 1, 0)
    assert len(fake_mlflow.runs["run0"]["metrics"]) == 1204


@pytest.mark.parametrize(("package", "writer", "fake"), [("wandb", WandbWriter, FakeWandb), ("mlflow", MlflowWriter, FakeMlflow)])
def test_without_a_connection_it_is_reported_once_and_the_training_goes_on(monkeypatch, tmp_path, caplog, package, writer, fake):
    monkeypatch.setitem(sys.modules, package, fake(is_broken=True))
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tmp_path, hooks=[LogHook([writer(tmp_path, "detectors")], every_steps=1)])
        trainer.train()
    assert trainer.step == trainer.max_steps
    failures = [message for message in caplog.messages if "failed" in message]
    assert failures == [f"{writer.__name__} failed and is not used any more"]


@pytest.mark.parametrize(("package", "writer"), [("wandb", WandbWriter), ("mlflow", MlflowWriter)])
def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, tmp_path, package, writer):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf'package {package} is not installed .*pip install -e "\.\[{package}\]"'):
        writer(tmp_path, "detectors")


def test_wandb_itself_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_three_times(lambda: WandbWriter(tmp_path / "mine", "detectors", SETTINGS))
    files = sorted((tmp_path / "mine" / "wandb").glob("offline-run-*/run-*.wandb"))
    ids = [path.stem.removeprefix("run-") for path in files]
    assert len(ids) == 3 and len(set(ids)) == 2
    assert (tmp_path / "mine" / "wandb_run_id.txt").read_text() in ids
    assert all(b"val/AP/C++ (old)" in path.read_bytes() for path in files)


def test_mlflow_itself_in_a_local_database(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # mlflow-skinny comes without it
    address = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir(tmp_path)
    write_three_times(lambda: MlflowWriter(tmp_path / "mine", "detectors", SETTINGS))
    client = mlflow.MlflowClient(address)
    runs = client.search_runs([client.get_experiment_by_name("detectors").experiment_id], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    history = [(metric.step, metric.value) for metric in client.get_metric_history(runs[0].info.run_id, "val/AP/C__ _old_")]
    assert history == [(2, 0.5), (4, 0.5)]
    assert math.isnan(runs[0].data.metrics["train/loss"]) and runs[0].data.params["model.variant"] == "pico"
