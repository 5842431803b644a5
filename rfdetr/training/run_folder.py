"""The folder of a run: what may be overwritten, what a resumed run needs, and the files written before training starts."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from engine import load_checkpoint
from engine.distributed import barrier, is_main_process
from rfdetr.errors import InputError

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth"
METRICS, METRICS_TABLE = "metrics.jsonl", "metrics.csv"
OUTPUTS = (
    "config.yaml", "label_map.json", "checkpoint*.pth", METRICS, METRICS_TABLE, "results.json", "events.out.tfevents.*",
    "*_run_id.txt", "train_batch.png", "val_predictions.png", "curves.png", "pr_curve.png", "confusion_matrix.png",
)
WITHOUT_EFFECT = ("resolution", "num_select")  # fields of a model that its weights do not depend on


def prepare_folder(folder: Path, *, resume: str | None, overwrite: bool) -> dict[str, Any] | None:
    """Make sure that the folder may be used, and return what to resume from: None for a run that starts afresh.

    Args:
        resume: a checkpoint, or "auto": the newest valid one of the folder, if there is any.
        overwrite: a run that is there is going to be replaced; nothing is deleted yet.

    Raises:
        InputError: there is a run already and neither was asked for, or the folder or the checkpoint is not usable.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other: go on with the run that is there, or replace it")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"train.output_dir: {folder} is a file, not a folder")
    found = [path for path in _outputs(folder) if path.stat().st_size > 0]  # an empty file is nothing to lose
    if found and not resume and not overwrite:
        names = ", ".join(path.name for path in found[:3])
        raise InputError(f"train.output_dir: {folder} already holds a run ({names}{', ...' if len(found) > 3 else ''}); "
                         "go on with it by --resume auto, replace it by --overwrite, or choose another folder")
    state = _resumed_state(folder, resume) if resume else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"train.output_dir: {folder} cannot be made ({error.strerror}); choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"train.output_dir: {folder} is not writable; choose another folder")
    barrier()  # every process has looked before the first one writes anything
    return state


def clear_folder(folder: Path) -> None:
    """Delete the files of the run that is replaced, once everything for the new one is there; nothing else is touched."""
    if is_main_process():
        for path in _outputs(folder):
            path.unlink()


def _outputs(folder: Path) -> list[Path]:
    return sorted(path for pattern in OUTPUTS for path in folder.glob(pattern))


def _resumed_state(folder: Path, resume: str) -> dict[str, Any] | None:
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
    if state.get("label_map", metadata["label_map"]) != metadata["label_map"]:
        raise InputError(f"--resume: the checkpoint was trained on other classes: {_classes(state['label_map'])} there, "
                         f"{_classes(metadata['label_map'])} here")


def write_settings(folder: Path, config: dict[str, Any], label_map: dict[str, Any]) -> None:
    """Write config.yaml, which repeats the run when given as --cfg, and label_map.json."""
    if is_main_process():
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        write_json(folder / "label_map.json", label_map)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _classes(label_map: Mapping[str, Any]) -> str:
    return ", ".join(f"{row['label']}: {row['name']} (id {row['category_id']})" for row in label_map["classes"])
