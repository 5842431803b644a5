"""The folder of a run: what may be overwritten, and the files written before training starts."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from engine import Hook, Trainer
from engine.distributed import barrier, is_main_process
from rfdetr.errors import InputError
from rfdetr.files import replacing_file, write_json
from rfdetr.report.read import DETECTIONS, FACTS, LABEL_MAP, METRICS, REPORT, RESULTS, SETTINGS
from rfdetr.training.ownership import owned, together

CHECKPOINT = "checkpoint.pth"
METRICS_TABLE = "metrics.csv"
IMAGES = "logged_images"  # the folder of pictures that hooks have logged
OUTPUTS = (
    SETTINGS, LABEL_MAP, "checkpoint*.pth", "bad_steps.jsonl", METRICS, METRICS_TABLE, RESULTS, "events.out.tfevents.*",
    "*_run_id.txt", DETECTIONS, FACTS, REPORT, f"{IMAGES}/*.png",
    "train_batch.png", "val_predictions.png", "curves.png", "pr_curve.png", "confusion_matrix.png",
)


class RunFolderHook(Hook):
    """Let a run into its folder: refuse the files of another one, or clear them away, and write what the run is made of.

    Args:
        metadata: `args`, the configuration as plain values, `model_config` and `label_map`.
        overwrite: delete the run that is there.
        resumed: go on with the run that is there.

    Attributes:
        is_owned: whether the folder is locked for this run already.
        prepare: called with the folder before anything is written, to bring files of the run there.
    """

    def __init__(self, metadata: Mapping[str, Any], *, overwrite: bool = False, resumed: bool = False) -> None:
        self.metadata = dict(metadata)
        self.overwrite, self.resumed = overwrite, resumed
        self.is_owned = False
        self.prepare: Callable[[Path], None] | None = None
        self._ownership = ExitStack()

    def before_train(self, trainer: Trainer) -> None:
        folder = trainer.output_dir
        if not self.is_owned:
            self._ownership.enter_context(made(folder))
            self._ownership.enter_context(owned(folder))
        if not self.resumed and not self.overwrite:
            together(partial(check_empty, folder))
        together(partial(self._write, folder))
        self.resumed, self.prepare = True, None  # should it be trained on

    def close(self) -> None:
        self._ownership.close()

    def _write(self, folder: Path) -> None:
        if not is_main_process():
            return
        try:
            if self.prepare is not None:
                self.prepare(folder)
            if self.overwrite and not self.resumed:
                for path in _outputs(folder):
                    path.unlink()
            with replacing_file(folder / SETTINGS) as path:
                path.write_text(yaml.safe_dump(self.metadata["args"], sort_keys=False, allow_unicode=True), encoding="utf-8")
            write_json(folder / LABEL_MAP, self.metadata["label_map"])
        except OSError as error:
            raise InputError(f"train.output_dir: {folder} cannot be written ({error.strerror or error}); make room, or choose "
                             "another folder") from error

    def state_dict(self) -> dict[str, Any]:
        return {"args": self.metadata["args"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed = True


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make the folder where it is missing, and take it away afterwards, should it still be empty. Collective.

    Raises:
        InputError: it cannot be used; says why, and what to do.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    barrier()  # before anybody makes them
    together(partial(_make, folder))
    try:
        yield
    finally:
        with suppress(OSError):  # something is in it
            for path in missing:
                path.rmdir()


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"train.output_dir: {folder} is a file, not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"train.output_dir: {folder} cannot be made ({error.strerror}); choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"train.output_dir: {folder} is not writable; choose another folder")


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds a run."""
    found = [path for path in _outputs(folder) if path.stat().st_size > 0]  # an empty file is nothing to lose
    if found:
        names = ", ".join(path.name for path in found[:3])
        raise InputError(f"train.output_dir: {folder} already holds a run ({names}{', ...' if len(found) > 3 else ''}); "
                         "go on with it by --resume auto, replace it by --overwrite, or choose another folder")


def has_only_begun(folder: Path) -> bool:
    """Tell whether all that a folder holds of a run is from before its first save."""
    return not any(path.name == RESULTS or path.suffix == ".pth" for path in _outputs(folder))


def _outputs(folder: Path) -> list[Path]:
    return sorted(path for pattern in OUTPUTS for path in folder.glob(pattern))
