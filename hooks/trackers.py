"""Writers for experiment trackers, Weights & Biases and MLflow: packages that are imported only where they are chosen.

Where they send things is their own business (WANDB_MODE, WANDB_API_KEY, MLFLOW_TRACKING_URI, ...). A run that goes on from a
checkpoint goes on in the tracker too: its id there is kept in a file of the run's folder.
"""

import importlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hooks.writers import Lines, Picture, flat

_AT_ONCE = 100  # values of a request to MLflow; it refuses more than 100 parameters and more than 1000 metrics


class WandbWriter:
    """A run of Weights & Biases; its local files are in `folder`/wandb.

    Args:
        settings: what the run was made with, shown as its config.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, folder: str | os.PathLike, project: str, settings: Mapping[str, Any] | None = None) -> None:
        self.wandb = _import_extra("wandb")
        self.folder, self.project, self.settings = Path(folder), project, dict(settings or {})
        self.run: Any = None  # started by `rewind` or the first write: a run that does not get there leaves nothing behind

    def rewind(self, step: int, lines: Lines | None = None) -> None:
        # what was written after `step` cannot be taken back; W&B keeps it and ignores the same steps when they come again
        self._start(_read_id(self.folder / "wandb_run_id.txt") if step else None)

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        if self.run is None:
            self._start(None)
        self.run.log({**scalars, "epoch": epoch}, step=step)

    def write_image(self, name: str, picture: Picture, step: int, epoch: int) -> None:
        if self.run is None:
            self._start(None)
        self.run.log({name: self.wandb.Image(picture.pixels)}, step=step)

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None

    def _start(self, run_id: str | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = self.wandb.init(
            project=self.project, name=self.folder.resolve().name, dir=str(self.folder), config=self.settings, id=run_id,
            resume="allow",
        )
        (self.folder / "wandb_run_id.txt").write_text(self.run.id)


class MlflowWriter:
    """A run of an MLflow experiment, which is made if it is not there.

    Args:
        settings: what the run was made with, shown as its parameters (nested keys with dots between them).

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, folder: str | os.PathLike, experiment: str, settings: Mapping[str, Any] | None = None) -> None:
        self.mlflow = _import_extra("mlflow")
        self.folder, self.experiment, self.settings = Path(folder), experiment, dict(settings or {})
        self.client: Any = None
        self.run_id = ""

    def rewind(self, step: int, lines: Lines | None = None) -> None:
        # what was written after `step` cannot be taken back: those steps are there twice afterwards
        self._start(_read_id(self.folder / "mlflow_run_id.txt") if step else None)

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        if self.client is None:
            self._start(None)
        now = int(time.time() * 1000)
        values = {**scalars, "epoch": epoch}
        metrics = [self.mlflow.entities.Metric(_allowed(tag), value, now, step) for tag, value in values.items()]
        for some in _portions(metrics):
            self.client.log_batch(self.run_id, metrics=some)

    def write_image(self, name: str, picture: Picture, step: int, epoch: int) -> None:
        if self.client is None:
            self._start(None)
        self.client.log_image(self.run_id, picture.pixels, f"{_allowed(name)}-{step}.png")

    def close(self) -> None:
        if self.client is not None:
            self.client.set_terminated(self.run_id)
            self.client = None

    def _start(self, run_id: str | None) -> None:
        client = self.mlflow.MlflowClient()
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
        else:
            found = client.get_experiment_by_name(self.experiment)
            experiment_id = found.experiment_id if found else client.create_experiment(self.experiment)
            run_id = client.create_run(experiment_id, run_name=self.folder.resolve().name).info.run_id
            parameters = [self.mlflow.entities.Param(_allowed(key), str(value)[:500]) for key, value in flat(self.settings)]
            for some in _portions(parameters):
                client.log_batch(run_id, params=some)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "mlflow_run_id.txt").write_text(run_id)
        self.client, self.run_id = client, run_id


def _import_extra(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f'the package {package} is not installed ({error}); pip install -e ".[{package}]"') from error


def _read_id(path: Path) -> str | None:
    return path.read_text().strip() or None if path.exists() else None


def _allowed(name: str) -> str:
    """Replace what MLflow does not allow in names, as in the class "C++ (old)"."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _portions(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
