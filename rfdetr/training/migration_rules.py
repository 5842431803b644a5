"""How single settings of the published package become ours, where a name and a value are not enough.

A rule is given the stored value and all stored settings. It returns our options with their values, and under `REMARK` what is
to be said about them.
"""

from collections.abc import Callable, Mapping
from typing import Any

REMARK = "#"
Stored = Mapping[str, Any]
Rule = Callable[[Any, Stored], dict[str, Any]]

_OPTIMIZERS = {name.lower(): name for name in (
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")}
_RECIPES = {  # names of the transforms of the published presets
    ("HorizontalFlip", "RandomBrightnessContrast"): "conservative",
    ("Affine", "ColorJitter", "HorizontalFlip", "Rotate", "VerticalFlip"): "aggressive",
    ("HorizontalFlip", "RandomBrightnessContrast", "Rotate", "VerticalFlip"): "aerial",
    ("GaussNoise", "GaussianBlur", "HorizontalFlip", "RandomBrightnessContrast"): "industrial",
}
_FLIP = [{"class_path": "torchvision.transforms.v2.RandomHorizontalFlip", "init_args": {"p": 0.5}}]
_PRECISIONS = {"auto": "auto", "bf16": "bf16", "fp16": "fp16", None: "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16",
               "32-true": "fp32", "32": "fp32", "16": "fp16"}


def one_of(option: str, values: Mapping[Any, Any]) -> Rule:
    """Translate a value by a table; others are said to have no counterpart."""

    def rule(value: Any, stored: Stored) -> dict[str, Any]:
        if isinstance(value, (str, bool, int, type(None))) and value in values:
            return {} if values[value] is None else {option: values[value]}
        return {REMARK: f"{value!r} has no counterpart; see {option}"}

    return rule


def elsewhere(value: Any, stored: Stored) -> dict[str, Any]:
    """Leave it to the rule of another setting, which looks at this one too."""
    return {}


def unless(option: str, *without: Any) -> Rule:
    """Take the value as it is, and nothing at those that stand for "not set"."""
    return lambda value, stored: {} if value in without else {option: value}


def batch_size(value: Any, stored: Stored) -> dict[str, Any]:
    if value != "auto":
        return {"data.batch_size": value}
    return {"data.batch_size": "auto", "train.effective_batch": stored.get("auto_batch_target_effective", 16)}


def accumulation(value: Any, stored: Stored) -> dict[str, Any]:
    return {} if stored.get("batch_size") == "auto" else {"train.grad_accum_steps": value}


def output_dir(value: Any, stored: Stored) -> dict[str, Any]:
    return {"train.output_dir": f"{str(value).rstrip('/')}_migrated", REMARK: "the old run's folder stays as it is"}


def checkpoint_interval(value: Any, stored: Stored) -> dict[str, Any]:
    return {"train.keep_every_epochs": value} if value <= stored.get("epochs", 100) else {}


def _has_average(stored: Stored) -> bool:
    strategies = (str(stored.get(name)) for name in ("strategy", "trainer.strategy"))
    return stored.get("use_ema", True) and not any(name.startswith("fsdp") for name in strategies)


def eval_base_model(value: Any, stored: Stored) -> dict[str, Any]:
    return {"eval.models": "both" if value or not _has_average(stored) else "ema"}


def early_stopping_use_ema(value: Any, stored: Stored) -> dict[str, Any]:
    return {"early_stopping.use_ema": value and _has_average(stored)}


def best_model_metric(value: Any, stored: Stored) -> dict[str, Any]:
    return {"eval.monitor": ("segm_" if stored.get("segmentation_head") else "") + "mAR"} if value == "mar" else {}


def compute_val_loss(value: Any, stored: Stored) -> dict[str, Any]:
    return {"eval.loss": True} if value is True else {}


def square_resize(value: Any, stored: Stored) -> dict[str, Any]:
    return {} if value else {"data.resize": "letterbox", REMARK: "there pictures keep their shape with the short side at the "
                             "resolution, here they are fitted into it and padded"}


def dataset_file(value: Any, stored: Stored) -> dict[str, Any]:
    formats = {"roboflow": None, "coco": "coco", "o365": "objects365", "yolo": "yolo", "webdataset": "shards"}
    found = one_of("data.format", formats)
    remark = {REMARK: "labels are numbered 0 to K-1 here; those of the official COCO weights are data.label_map: coco"}
    return found(value, stored) | (remark if value == "coco" else {})


def augmentation(value: Any, stored: Stored) -> dict[str, Any]:
    has_crop = stored.get("scale_jitter", True)
    if value == {}:
        return {"data.augment": "none"} | ({REMARK: "there the random crop was on (scale_jitter); here no recipe has it without "
                                            "mirror images"} if has_crop else {})
    if value is None or isinstance(value, Mapping) and tuple(value) == ("HorizontalFlip",):
        return {"data.augment": "default" if has_crop else _FLIP}
    recipe = _RECIPES.get(tuple(sorted(value))) if isinstance(value, Mapping) else None
    if recipe:
        return {"data.augment": recipe, REMARK: f"our recipe {recipe!r} is for the same pictures, with strengths of its own"}
    return {REMARK: f"{value!r}: write these as torchvision v2 transforms, data.augment: [{{class_path: ..., init_args: ...}}]"}


def schedule(value: Any, stored: Stored) -> dict[str, Any]:
    """Translate a schedule; one that watches a metric watches that of the average, where that alone was evaluated."""
    arguments = dict(stored.get("lr_scheduler_kwargs") or {})
    if value in ("step", "cosine"):
        names = {"lr_drop": "optim.lr_drop", "min_factor": "optim.lr_min_factor"}
        return {"optim.schedule": value} | {names[name]: arguments[name] for name in names if name in arguments}
    if str(value).endswith("ReduceLROnPlateau"):
        metric = stored.get("lr_scheduler_monitor", "val/loss")
        if _has_average(stored) and not stored.get("eval_base_model", False):
            metric = metric.replace("val/", "val/ema_")
        names = {"factor": "factor", "patience": "patience", "threshold": "min_delta"}
        found = {"metric": metric} | {names[name]: arguments[name] for name in names if name in arguments}
        return {"optim.schedule": "plateau", "optim.schedule_args": found, REMARK: "patience counts evaluations"} | (
            {"eval.loss": True} if "loss" in metric else {})
    settings = {"optim.schedule": str(value), "optim.schedule_args": arguments}
    return settings | ({REMARK: "counts optimizer steps here, epochs there: multiply its numbers by the steps of an epoch"}
                       if stored.get("lr_scheduler_interval") == "epoch" else {})


def optimizer(value: Any, stored: Stored) -> dict[str, Any]:
    arguments = dict(stored.get("optimizer_kwargs") or {})
    rates = {name: arguments.pop(name) for name in ("lr", "weight_decay") if name in arguments}
    settings = {"optim.optimizer": _OPTIMIZERS.get(str(value).lower(), str(value)), "optim.optimizer_args": arguments}
    return settings | ({REMARK: f"{rates} of optimizer_kwargs: parameter groups have rates of their own here (optim.lr, "
                        "optim.lr_encoder, optim.weight_decay)"} if rates else {})


def precision(value: Any, stored: Stored) -> dict[str, Any]:
    if value == "auto" and stored.get("amp") is False:
        return {"train.precision": "fp32"}
    if value == "fp8":
        return {"train.precision": "bf16", REMARK: "there is no fp8 here"}
    return one_of("train.precision", _PRECISIONS)(value, stored)


def strategy(value: Any, stored: Stored) -> dict[str, Any]:
    if str(value).startswith("fsdp"):
        return {"train.strategy": "fsdp", "ema.enabled": False, REMARK: "no average is kept then"}
    known = value in ("auto", None) or str(value).startswith("ddp")
    return {} if known else {REMARK: f"{value!r} has no counterpart; ddp and fsdp have"}


def processes(value: Any, stored: Stored) -> dict[str, Any]:
    return {} if value in (None, 1, "1", "auto") else {
        REMARK: f"{value!r}: torchrun starts the processes: torchrun --nproc-per-node N --no-python rfdetr fit ..."}


def tracker(option: str) -> Rule:
    """Name the project of a tracker that is on."""
    return lambda value, stored: {option: str(stored.get("project") or "rfdetr")} if value else {}


def classification_loss(value: Any, stored: Stored) -> dict[str, Any]:
    if value:
        return {"loss.cls": "ia_bce"}
    kinds = {"use_varifocal_loss": "varifocal", "use_position_supervised_loss": "position"}
    return {"loss.cls": next((kind for name, kind in kinds.items() if stored.get(name)), "focal")}


def freeze(value: Any, stored: Stored) -> dict[str, Any]:
    return {"model.freeze": ["backbone.encoder"]} if value else {}


def skip_best_epochs(value: Any, stored: Stored) -> dict[str, Any]:
    if value < stored.get("epochs", 100):
        return {"eval.skip_first_epochs": value}
    return {REMARK: f"{value} is not less than the epochs, so that no evaluation would count; see eval.skip_first_epochs"}


def resume(value: Any, stored: Stored) -> dict[str, Any]:
    return {REMARK: f"{value}: goes on the command line, rfdetr fit --resume {value}"} if value else {}
