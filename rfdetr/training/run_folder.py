"""The folder of a run: what may be overwritten, what a resumed run needs, and the files written before training starts."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from engine import Hook, Trainer, load_checkpoint
from engine.distributed import barrier, is_main_process
from rfdetr.data import LabelMap
from rfdetr.data.class_matching import differences
from rfdetr.errors import InputError
from rfdetr.files import replacing_file, write_json

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth"
METRICS, METRICS_TABLE = "metrics.jsonl", "metrics.csv"
SETTINGS, LABEL_MAP, RESULTS = "config.yaml", "label_map.json", "results.json"
OUTPUTS = (
    SETTINGS, LABEL_MAP, "checkpoint*.pth", METRICS, METRICS_TABLE, RESULTS, "events.out.tfevents.*",
    "*_run_id.txt", "train_batch.png", "val_predictions.png", "curves.png", "pr_curve.png", "confusion_matrix.png",
)
WITHOUT_EFFECT = ("resolution", "num_select")  # fields of a model that its weights do not depend on


class RunFolderHook(Hook):
    """Let a run into its folder: refuse the files of another one, or clear them away, and write what the run is made of.

    Args:
        metadata: `args`, the configuration as plain values, `model_config` and `label_map`.
        overwrite: delete the run that is there.
        resumed: go on with the run that is there.
    """

    def __init__(self, metadata: Mapping[str, Any], *, overwrite: bool = False, resumed: bool = False) -> None:
        self.metadata = dict(metadata)
        self.overwrite, self.resumed = overwrite, resumed

    def before_train(self, trainer: Trainer) -> None:
        folder = trainer.output_dir
        if not self.resumed and not self.overwrite:
            check_empty(folder)
        barrier()  # every process has looked before the first one writes anything
        if is_main_process():
            if self.overwrite:
                for path in _outputs(folder):
                    path.unlink()
            with replacing_file(folder / SETTINGS) as path:
                path.write_text(yaml.safe_dump(self.metadata["args"], sort_keys=False, allow_unicode=True), encoding="utf-8")
            write_json(folder / LABEL_MAP, self.metadata["label_map"])
        self.resumed = True  # should it be trained on

    def state_dict(self) -> dict[str, Any]:
        return {"args": self.metadata["args"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed = True


def check_folder(folder: Path, *, resume: str | None, overwrite: bool) -> None:
    """Refuse a folder that cannot be used, or holds a run that nobody asked to go on with or to replace.

    Raises:
        InputError: says which, and what to do.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other: go on with the run that is there, or replace it")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"train.output_dir: {folder} is a file, not a folder")
    if not resume and not overwrite:
        check_empty(folder)
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


def _outputs(folder: Path) -> list[Path]:
    return sorted(path for pattern in OUTPUTS for path in folder.glob(pattern))


def read_resume_state(folder: Path, resume: str | None) -> dict[str, Any] | None:
    """Read what a run goes on from.

    Args:
        resume: a checkpoint, or "auto": the newest valid one of the folder, if there is any; None: nothing.

    Raises:
        InputError, CheckpointError: it cannot be read, or holds no run.
    """
    if resume is None:
        return None
    path = folder / CHECKPOINT if resume == "auto" else Path(resume).expanduser()
    if resume == "auto" and not any(folder.glob(f"{path.stem}.prev*{path.suffix}")) and not path.exists():
        logger.info("--resume auto: no %s in %s, starting afresh", CHECKPOINT, folder)
        return None
    state = load_checkpoint(path, fallback=resume == "auto")
    if "optimizer" not in state:
        raise InputError(f"{path}: holds weights only, a run cannot go on from it; use {CHECKPOINT}, or start from these weights "
                         "with --model.weights")
    logger.info("resuming from epoch %d, step %d of %s", state["epoch"], state["step"], path)
    return state


def check_same_run(state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Refuse to go on with another model or other classes than the checkpoint's; both are shown."""
    then, now = state.get("model_config") or {}, metadata["model_config"]
    different = [name for name in now if name in then and then[name] != now[name] and name not in WITHOUT_EFFECT]
    if different and "num_classes" not in different:
        shown = "; ".join(f"{name} {then[name]} there, {now[name]} here" for name in different)
        raise InputError(f"--resume: the checkpoint is of another model: {shown}")
    theirs, ours = (LabelMap.from_dict(part["label_map"]) for part in ({**metadata, **state}, metadata))
    if found := differences(theirs, ours, there="the checkpoint", here="the data set"):
        raise InputError(f"--resume: the checkpoint was trained on other classes: {found}")
