"""Going on with a run: what is read, what has to be the same, what is another setting now, and whether anything is left to do."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import Trainer
from engine.checkpoint import find_checkpoint, fingerprint
from engine.distributed import gather_objects
from rfdetr.data import LabelMap
from rfdetr.data.class_matching import differences
from rfdetr.errors import InputError
from rfdetr.report.read import DETECTIONS, FACTS, flat
from rfdetr.training.foreign import continue_from, read_foreign
from rfdetr.training.run_folder import CHECKPOINT, METRICS, METRICS_TABLE, RESULTS, check_empty, has_only_begun

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = ("resolution", "num_select")  # fields of a model that its weights do not depend on
OF_THE_START = ("model.weights", "model.ema_weights", "model.backbone_weights", "model.resize_head")
OF_A_MACHINE = (  # may differ from one process of a run to another
    "data.dataset_dir", "data.num_workers", "data.cache", "data.prefetch_factor", "data.persistent_workers",
    "data.start_method", "train.output_dir", "train.device", "model.weights", "model.backbone_weights",
)
KINDS = {  # of the parts of a checkpoint
    **dict.fromkeys(("model", "optimizer", "scaler", "hooks", "bad_steps", "args", "model_config", "label_map"), dict),
    **dict.fromkeys(("epoch", "step", "epoch_step", "samples_per_step", "steps_per_epoch"), int), "rng": list,
}
COMES_ALONG = ("checkpoint_best_*.pth", METRICS, METRICS_TABLE, DETECTIONS, FACTS, "events.out.tfevents.*")  # into another folder


def read_state(folder: Path, resume: str | None) -> tuple[Path, dict[str, Any]] | None:
    """Read what a run goes on from, and tell from which file.

    Args:
        resume: a checkpoint, or "auto": the newest valid one of the folder, if there is any; None: nothing.

    Raises:
        InputError, CheckpointError: it cannot be read, or holds no run, or the folder holds another one.
    """
    if resume is None:
        return None
    path = folder / CHECKPOINT if resume == "auto" else Path(resume).expanduser()
    if resume != "auto" and path.parent.resolve() != folder.resolve():
        check_empty(folder)
    if resume == "auto" and not any(folder.glob(f"{path.stem}.prev*{path.suffix}")) and not os.path.lexists(path):
        if not has_only_begun(folder):
            raise InputError(f"--resume auto: {folder} holds files of a run, but no {CHECKPOINT} to go on from; replace it by "
                             "--overwrite, or choose another folder")
        logger.info("--resume auto: no %s in %s, starting afresh", CHECKPOINT, folder)
        return None
    if resume != "auto" and (foreign := read_foreign(path)) is not None:
        return path, foreign
    path, state = find_checkpoint(path, fallback=resume == "auto")
    if "optimizer" not in state:
        raise InputError(f"{path}: holds weights only, a run cannot go on from it; use {CHECKPOINT}, or start from these weights "
                         "with --model.weights")
    _check_kinds(path, state)
    logger.info("resuming after %d whole epochs and step %d, from %s", state["epoch"], state["step"], path)
    return path, state


def _check_kinds(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose parts are not what they should be, before anything is made of them."""
    for name, kind in KINDS.items():
        value = state.get(name)
        is_lacking = value is None and name not in ("epoch", "step", "epoch_step")  # older files have less
        is_bad = type(value) is not int or value < 0 if kind is int else not isinstance(value, kind)
        if is_bad and not is_lacking:
            raise InputError(f"{path}: its {name} is {value if type(value) is int else type(value).__name__}; a run cannot go on "
                             "from it")


def check_agreement(found: tuple[Path, Mapping[str, Any]] | None, settings: Mapping[str, Any]) -> None:
    """Refuse processes that would go on from different states, or with different settings. Collective."""
    where = None if found is None else (found[1]["epoch"], found[1]["step"], fingerprint(found[0]))
    own = {name: value for name, value in flat(settings).items() if name not in OF_A_MACHINE and not name.startswith("log.")}
    everyone = gather_objects((where, own))
    for rank, (their_place, theirs) in enumerate(everyone):
        first_place, first = everyone[0]
        if their_place != first_place:
            raise InputError(f"--resume: process 0 goes on from {_shown_place(first_place)}, process {rank} from "
                             f"{_shown_place(their_place)}; all have to see the same {CHECKPOINT}: put train.output_dir on a "
                             "disk that they share, or copy the file")
        if different := sorted(name for name in first if first[name] != theirs.get(name)):
            name = different[0]
            raise InputError(f"{name}: {first[name]!r} for process 0, {theirs.get(name)!r} for process {rank}; start all of them "
                             "with the same settings")


def _shown_place(place: tuple[int, int, str] | None) -> str:
    return "nothing, it has no checkpoint" if place is None else f"epoch {place[0]}, step {place[1]} (checksum {place[2]})"


def check_same_run(state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Refuse to go on with another model or other classes than the checkpoint's; both are shown."""
    then, now = state.get("model_config") or {}, metadata["model_config"]
    different = [name for name in now if name in then and repr(then[name]) != repr(now[name]) and name not in WITHOUT_EFFECT]
    if different and "num_classes" not in different:
        theirs, ours = ({name: value for name, value in flat(part.get("args") or {}).items() if name.startswith("model.")}
                        for part in (state, metadata))
        settings = [name for name in ours if name in theirs and repr(ours[name]) != repr(theirs[name])]
        shown = [f"{name} {_shown(theirs[name])} there, {_shown(ours[name])} here" for name in settings]
        shown = shown or [f"{name} {_shown(then[name])} there, {_shown(now[name])} here" for name in different]
        raise InputError(f"--resume: the checkpoint is of another model: {'; '.join(shown)}")
    if "foreign" in state:
        return  # load_weights compares what such a file says of itself
    theirs, ours = (LabelMap.from_dict(part["label_map"]) for part in ({**metadata, **state}, metadata))
    if found := differences(theirs, ours, there="the checkpoint", here="the data set"):
        raise InputError(f"--resume: the checkpoint was trained on other classes: {found}")


def other_settings(state: Mapping[str, Any], settings: Mapping[str, Any]) -> set[str]:
    """Return the names of the settings that are not those of the checkpoint, after logging them in one table.

    Raises:
        InputError: one of them is about how a run starts, and could do nothing any more.
    """
    # compared as texts, since a file may hold anything, also tensors
    then, now = flat(state.get("args") or settings if "foreign" not in state else settings), flat(settings)
    different = [name for name in now if name not in then or repr(then[name]) != repr(now[name])]
    for name in different:
        if name in OF_THE_START and name in then:
            raise InputError(f"--resume: {name} was {then[name]!r} and is {now[name]!r}, but a run goes on with the weights of "
                             "its checkpoint; leave it as it was, or start another run")
    rows = [(name, _shown(then[name]) if name in then else "(not there yet)", _shown(now[name])) for name in different]
    if rows:
        rows.insert(0, ("setting", "then", "now"))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        table = "\n".join(f"  {name:<{widths[0]}}  {old:<{widths[1]}}  {new}" for name, old, new in rows)
        logger.info("resumed with other settings:\n%s", table)
    return set(different)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def load_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Give the trainer its state; whatever does not fit is bad input."""
    try:
        if "foreign" in state:
            continue_from(trainer, state)
        else:
            trainer.load_state_dict(state)
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError("--resume: the checkpoint does not fit the settings of this run: "
                         f"{' '.join(str(error).split())[:500]}") from error


def results_of_finished(trainer: Trainer, different: set[str]) -> dict[str, Any] | None:
    """Return the results of a run that ended with this state, if its settings leave nothing to do. Collective."""
    return gather_objects(_read_results(trainer, different))[0]


def _read_results(trainer: Trainer, different: set[str]) -> dict[str, Any] | None:
    try:
        results = json.loads((trainer.output_dir / RESULTS).read_text(encoding="utf-8"))
        ended = (results["epochs"], results["steps"]) == (trainer.epoch, trainer.step)
        ended = ended and results["status"] in ("done", "non_finite")
        reason = results["stop_reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_complete = trainer.is_finished and "eval.run_test" not in different
    is_stopped = reason is not None and all(name.startswith("log.") for name in different)
    if not ended or not (is_complete or is_stopped):
        return None
    logger.info("nothing is left to do in %s, %s: train.epochs or other settings of what stopped it let it go on",
                trainer.output_dir, reason or f"all {trainer.step} steps are done")
    return {**results, "status": "done"}


def bring_along(checkpoint: Path, folder: Path) -> None:
    """Copy what belongs to a run beside its checkpoint into the folder in which it goes on; all of it, or nothing."""
    found = sorted(path for pattern in COMES_ALONG for path in checkpoint.parent.glob(pattern) if path.is_file())
    names = {**{path.name: path for path in found}, CHECKPOINT: checkpoint}
    coming = folder / ".coming"
    shutil.rmtree(coming, ignore_errors=True)  # of a process that was killed in here
    coming.mkdir()
    try:
        for name, source in names.items():
            shutil.copyfile(source, coming / name)
        for name in names:
            (coming / name).replace(folder / name)
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    logger.info("copied from %s: %s", checkpoint.parent, ", ".join([path.name for path in found] + [checkpoint.name]))
