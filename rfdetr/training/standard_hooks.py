"""The hooks of every run, in their order, and how a user's subclass of one takes its place."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine import Hook
from engine.distributed import is_main_process
from hooks import (
    BestCheckpointHook,
    CheckpointHook,
    COCOEvalHook,
    DropPathHook,
    EarlyStopHook,
    EMAHook,
    EvalLossHook,
    InterruptHook,
    LogHook,
    PlateauHook,
    PlotsHook,
    ProgressHook,
)
from hooks.monitor import direction
from hooks.trackers import MlflowWriter, WandbWriter
from hooks.writers import CsvWriter, JsonlWriter, PictureWriter, TensorBoardWriter, Writer
from rfdetr.build import build_criterion, build_postprocess
from rfdetr.config import ModelConfig
from rfdetr.data import DetectionLoader
from rfdetr.errors import InputError, did_you_mean
from rfdetr.evaluation import DetectionMetrics
from rfdetr.extras import import_named
from rfdetr.plots import RunPictures
from rfdetr.schedules import schedule_arguments
from rfdetr.training.command_line import bad_input
from rfdetr.training.config import RunConfig
from rfdetr.training.evaluation import as_trained_on, iou_types
from rfdetr.training.parsing import make_object, plain_dict
from rfdetr.training.reporting import ReportHook
from rfdetr.training.run_folder import IMAGES, METRICS, METRICS_TABLE

logger = logging.getLogger(__name__)

UserHook = Hook | type[Hook]


@dataclass(frozen=True)
class Standard:
    """What a run gives one of its own hooks."""

    hook: type[Hook]
    settings: Mapping[str, Any] = field(default_factory=dict)  # out of the configuration
    parts: Mapping[str, Any] = field(default_factory=dict)  # objects that it cannot do its work without
    enabled: bool = True


@dataclass(frozen=True)
class Wish:
    """A user's hook that is still to be made, or made again with what a run gives it."""

    cls: type[Hook]
    make: Callable[[Mapping[str, Any]], Hook]  # of given arguments, which its own go over


def user_wishes(specs: Sequence[Mapping[str, Any]], hooks: Sequence[UserHook]) -> list[Wish]:
    """Find the classes of users' hooks, those of the configuration first.

    Args:
        specs: ``{"class_path": ..., "init_args": {...}}``.
        hooks: hooks, or classes of hooks that need no arguments beside those a run gives.
    """
    return [_of_spec(spec) for spec in specs] + [_of_hook(hook) for hook in hooks]


def _of_spec(spec: Mapping[str, Any]) -> Wish:
    unknown = sorted(set(spec) - {"class_path", "init_args"}) if isinstance(spec, Mapping) else ["?"]
    if unknown or not isinstance(spec.get("class_path"), str):
        raise InputError(f"hooks: {spec} does not name a hook; give class_path, and init_args if it has any")
    cls, init_args = import_named(spec["class_path"], "hooks"), spec.get("init_args") or {}
    if not (isinstance(cls, type) and issubclass(cls, Hook)):
        raise InputError(f"hooks: {spec['class_path']} is not a subclass of {Hook.__name__}")
    return Wish(cls, partial(make_object, cls, init_args))


def _of_hook(hook: UserHook) -> Wish:
    if isinstance(hook, type) and issubclass(hook, Hook):
        return Wish(hook, partial(_call, hook))
    if not isinstance(hook, Hook):
        raise InputError(f"hooks: {hook!r} is neither a hook nor a class of hooks")
    return Wish(type(hook), partial(_complete, hook))


def _call(cls: type[Hook], given: Mapping[str, Any]) -> Hook:
    try:
        return cls(**given)
    except TypeError as error:
        raise InputError(f"hooks: {cls.__name__} cannot be made: {error}") from error


def _complete(hook: Hook, given: Mapping[str, Any]) -> Hook:
    """Give a hook that its user has made the arguments that it was made without."""
    if given:
        arguments, keywords = hook.init_arguments
        positional = inspect.signature(type(hook).__init__).bind_partial(hook, *arguments).arguments
        rest = {name: value for name, value in given.items() if name not in positional}
        hook.__init__(*arguments, **{**rest, **keywords})
    return hook


def build_hooks(
    config: RunConfig, architecture: ModelConfig, val_loader: DetectionLoader, metadata: Mapping[str, Any],
    payload: Callable, wishes: Sequence[Wish] = (), *, sets: Mapping[str, DetectionLoader] = MappingProxyType({}),
    writers: Sequence[Writer] = (), facts: Mapping[str, Any] | None = None,
) -> list[Hook]:
    """Make the hooks of a run: a user's subclass of a standard hook in its place, users' other hooks before those that write.

    Args:
        metadata: what checkpoint.pth holds beside the state.
        payload: makes the content of a best file of a model.
        sets: loaders of further evaluation sets.
        facts: the check of the data, for the report.

    Raises:
        InputError: two hooks for one place, or a subclass that does not take what a run has to give it.
    """
    postprocess = build_postprocess(architecture)
    evaluation = _evaluation(config, architecture, val_loader, postprocess, sets)
    saving = Standard(CheckpointHook, {"every_steps": config.train.save_every_steps, "keep": config.train.keep,
                                       "keep_every_epochs": config.train.keep_every_epochs}, {"metadata": metadata})
    steering = [*_steering(config, payload), Standard(InterruptHook, {"max_hours": config.train.max_hours})]
    telling = [
        Standard(LogHook, {"every_steps": config.log.every_steps}, {"writers": writers}),
        Standard(ProgressHook, {"enabled": None if config.log.progress else False}),
        Standard(PlotsHook, enabled=config.log.plots),
        Standard(ReportHook, {"facts": facts}, enabled=config.log.plots if config.log.report is None else config.log.report),
    ]
    taken, others = _places([one.hook for one in (*steering, *telling, saving, evaluation)], wishes)
    coco_eval = _make(evaluation, taken)
    dataset = val_loader.dataset
    pictures = {"pictures": RunPictures(dataset.label_map.names), "val_dataset": dataset, "coco_eval": coco_eval}
    parts = {PlotsHook: pictures, ReportHook: {"coco_eval": coco_eval, "dataset": dataset}}
    telling = [replace(one, parts=parts.get(one.hook, one.parts)) for one in telling]
    first, then = ([_make(one, taken) for one in some if one.enabled or one.hook in taken] for some in (steering, telling))
    return [*first, *(wish.make({}) for wish in others), *then, _make(saving, taken), coco_eval]


def _steering(config: RunConfig, payload: Callable) -> list[Standard]:
    """Return the hooks that change what is trained, and decide about it."""
    selection = {"monitor_regular": f"val/{config.monitor}", "monitor_ema": f"val/ema_{config.monitor}",
                 "skip_first_epochs": config.eval.skip_first_epochs}
    stopping = {**_settings(config.early_stopping), **selection}
    return [
        Standard(EMAHook, _settings(config.ema), enabled=config.ema.enabled),
        Standard(DropPathHook, _settings(config.drop)),
        Standard(EarlyStopHook, stopping, enabled=config.early_stopping.enabled),
        Standard(BestCheckpointHook, {**selection, "keep_top": config.train.keep_top}, {"payload": payload}),
        Standard(PlateauHook, _plateau(config), enabled=config.optim.schedule == "plateau"),
        Standard(EvalLossHook, {"prepare": as_trained_on}, enabled=config.eval.loss),
    ]


def _settings(section: Any) -> dict[str, Any]:
    """Return the fields of a section, which are the arguments of its hook, but for the switch."""
    return {name: value for name, value in vars(section).items() if name != "enabled"}


def _plateau(config: RunConfig) -> dict[str, Any]:
    """Return the settings of schedule "plateau"; it follows what decides about the best checkpoint, unless told otherwise."""
    settings = schedule_arguments("plateau", config.optim.schedule_args if config.optim.schedule == "plateau" else {})
    metric = settings["metric"] or f"val/{'ema_' if config.eval.models == 'ema' else ''}{config.monitor}"
    return {**settings, "metric": metric, "min_scale": config.optim.lr_min_factor}


def _evaluation(
    config: RunConfig, architecture: ModelConfig, val_loader: DetectionLoader, postprocess: Callable,
    sets: Mapping[str, DetectionLoader],
) -> Standard:
    settings = {
        "every_epochs": config.eval.every_epochs, "max_dets": config.eval.max_dets, "per_class": config.eval.per_class,
        "models": ("regular", "ema") if config.eval.models == "both" else (config.eval.models,),
        "iou_types": iou_types(architecture), "precision": config.eval.precision,
    }
    names = val_loader.dataset.label_map.names
    parts = {"data_loader": val_loader, "postprocess": postprocess, "class_names": names}
    return Standard(COCOEvalHook, settings, parts | ({"sets": sets} if sets else {}))  # a user's subclass need not know of them


def _places(standard: Sequence[type[Hook]], wishes: Sequence[Wish]) -> tuple[dict[type[Hook], Wish], list[Wish]]:
    """Return which users' hooks take the place of which standard ones, and the others."""
    taken: dict[type[Hook], Wish] = {}
    others: list[Wish] = []
    for wish in wishes:
        place = next((hook for hook in standard if issubclass(wish.cls, hook)), None)
        if place is None:
            others.append(wish)
        elif place in taken:
            raise InputError(f"hooks: {taken[place].cls.__name__} and {wish.cls.__name__} both take the place of "
                             f"{place.__name__}; leave one of them out")
        else:
            taken[place] = wish
    return taken, others


def _make(standard: Standard, taken: Mapping[type[Hook], Wish]) -> Hook:
    """Make a standard hook, or the user's in its place with what the standard one is given."""
    given = {**standard.settings, **standard.parts}
    wish = taken.get(standard.hook)
    if wish is None:
        return standard.hook(**given)
    known = inspect.signature(wish.cls.__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    refused = [] if takes_all else [name for name in given if name not in known]
    if needed := [name for name in refused if name in standard.parts]:
        raise InputError(f"hooks: {wish.cls.__name__} takes the place of {standard.hook.__name__}, but its __init__ does not "
                         f"take {', '.join(needed)}; add **arguments to it, and pass them on to super().__init__")
    if ignored := [name for name in refused if name in standard.settings]:
        logger.warning("hooks: %s takes the place of %s and decides about %s itself", wish.cls.__name__, standard.hook.__name__,
                       ", ".join(ignored))
    logger.info("hooks: %s takes the place of %s", wish.cls.__name__, standard.hook.__name__)
    return wish.make({name: value for name, value in given.items() if name not in refused})


def build_writers(config: RunConfig) -> list[Writer]:
    """Make what the scalars are written with; only the main process writes."""
    if not is_main_process():
        return []
    folder = Path(config.train.output_dir)
    writers: list[Writer] = [JsonlWriter(folder / METRICS), PictureWriter(folder / IMAGES)]
    if config.log.csv:
        writers.append(CsvWriter(folder / METRICS_TABLE))
    if config.log.tensorboard:
        writers.append(TensorBoardWriter(folder, plain_dict(config)))
    if config.log.wandb is not None:
        with bad_input("log.wandb: "):
            writers.append(WandbWriter(folder, config.log.wandb, plain_dict(config)))
    if config.log.mlflow is not None:
        with bad_input("log.mlflow: "):
            writers.append(MlflowWriter(folder, config.log.mlflow, plain_dict(config)))
    return writers


def check_metrics(config: RunConfig, class_names: Sequence[str] | None = None) -> None:
    """Refuse to follow a metric that evaluations do not have; None: the classes are not known yet."""
    architecture = config.model.architecture()
    types = iou_types(architecture)
    known = list(DetectionMetrics([], iou_types=types).compute())
    known += [f"{prefix}AP/{name}" for prefix in ("", "segm_")[: len(types)] for name in class_names or ()
              if config.eval.per_class]
    of_sets, losses = known, ["loss", *build_criterion(architecture).weight_dict] if config.eval.loss else []
    known = [*known, *losses]
    models = {"regular": config.eval.models != "ema", "ema_": config.eval.models != "regular" and config.ema.enabled}
    whole = [f"{split}/{model.removeprefix('regular')}{name}" for split in ("val", *config.eval.sets)
             for model, is_there in models.items() if is_there for name in (known if split == "val" else of_sets)]
    followed = [("eval.monitor", config.monitor, known)]
    if config.optim.schedule == "plateau":
        followed.append(("optim.schedule_args: metric", _plateau(config)["metric"], whole))
    for option, metric, names in followed:
        is_of_class = class_names is None and config.eval.per_class and "AP/" in metric
        if metric not in names and not is_of_class:
            hint = "set eval.loss to true" if direction(metric) < 0 and not config.eval.loss else did_you_mean(metric, names)
            raise InputError(f"{option}: {metric!r} is not measured; {hint}")
