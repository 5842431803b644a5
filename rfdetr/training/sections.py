"""Sections of a run's configuration beside the model and the loss: what to train on, how, and what to write down.

Each is a frozen dataclass whose fields are documented where they are declared (``--help`` shows that text) and which checks
itself when it is made. The defaults are those that RF-DETR was published with.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from rfdetr.errors import InputError
from rfdetr.fields import check_choices, check_fields, is_count, is_fraction, is_name_or_none, is_not_negative, is_positive
from rfdetr.schedules import SCHEDULES, schedule_arguments

MIXED = ("mosaic", "copy_paste", "mixup")  # fields of DataConfig
RESERVED = ("train", "val", "test", "ema", "lr")  # what other metrics begin with


def _is_paths_or_none(value: dict[str, dict[str, str]] | None) -> bool:
    return value is None or all(split in ("train", "val", "test") and set(paths) == {"annotations", "images"}
                                for split, paths in value.items())


def _are_names_or_none(value: tuple[str, ...] | None) -> bool:
    return value is None or 0 < len(value) == len(set(value)) and all(name.strip() for name in value)


def _are_sets(value: dict[str, str]) -> bool:
    return all(re.fullmatch(r"[A-Za-z][\w-]*", name) and name not in RESERVED and path for name, path in value.items())


def _is_group(group: dict[str, Any]) -> bool:
    numbers = {name: value for name, value in group.items() if name != "match"}
    return (isinstance(group.get("match"), str) and bool(numbers) and numbers.keys() <= {"lr_scale", "weight_decay"}
            and all(type(value) in (int, float) for value in numbers.values())
            and is_positive(numbers.get("lr_scale", 1)) and is_not_negative(numbers.get("weight_decay", 0)))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning rates."""

    lr: float = 1e-4
    """Learning rate of the heads, the projector and, times lr_component_decay, the decoder."""
    lr_encoder: float = 1.5e-4
    """Learning rate of the ViT's last block before the decays; earlier blocks get less."""
    weight_decay: float = 1e-4
    """Weight decay; biases, norms and embeddings of the ViT have none."""
    lr_vit_layer_decay: float = 0.8
    """Factor on the learning rate from one ViT block to the block before it."""
    lr_component_decay: float = 0.7
    """Factor on the decoder's learning rate; squared for the encoder."""
    optimizer: str = "AdamW"
    """A class of torch.optim, or the import path of an optimizer."""
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer, such as betas."""
    schedule: str = "step"
    """step (a tenth from lr_drop on), cosine (down to lr_min_factor), flat_cosine, polynomial, plateau (lower when evaluations
    are no better), a class of torch.optim.lr_scheduler, or an import path."""
    schedule_args: dict[str, Any] = field(default_factory=dict)
    """flat_cosine: flat (0.5, share of the steps at the full rate); polynomial: power (0.9); plateau: metric (that of
    eval.monitor), factor (0.1), patience (3), min_delta (0); or those of a class, which counts optimizer steps."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0; fractions are allowed."""
    lr_drop: int = 100
    """Epoch of the drop (schedule "step")."""
    lr_min_factor: float = 0.0
    """What is left of the learning rate at the end, or at least (schedules "cosine", "flat_cosine", "polynomial", "plateau"),
    0 to 1."""
    clip_max_norm: float = 0.1
    """Gradients are scaled down to this global L2 norm; 0 does not clip."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Changes for parameters by the patterns of their names, on top of the rates above: [{match: "*.bias", lr_scale: 2.0,
    weight_decay: 0}]."""

    def __post_init__(self) -> None:
        check_fields(self, "optim", "above 0", is_positive, "lr", "lr_vit_layer_decay", "lr_component_decay")
        check_fields(self, "optim", "0 or more", is_not_negative, "lr_encoder", "weight_decay", "warmup_epochs", "clip_max_norm")
        check_fields(self, "optim", "1 or more", is_count, "lr_drop")
        check_fields(self, "optim", "between 0 and 1", is_fraction, "lr_min_factor")
        for key in ("lr", "weight_decay"):
            if key in self.optimizer_args:
                raise InputError(f"optim.optimizer_args: {key} changes nothing there, since every parameter group has its own; "
                                 f"set optim.{key}")
        if self.schedule in SCHEDULES:
            schedule_arguments(self.schedule, self.schedule_args)
        check_fields(self, "optim", 'a list of {match: pattern} with lr_scale (above 0), weight_decay (0 or more), or both',
                     lambda groups: all(map(_is_group, groups)), "groups")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are, and how they become batches."""

    dataset_dir: str | None = None
    """Folder of the data set, or its data.yaml, COCO file or obj.data, or an address of shards (s3://...); where format is
    "shapes" the data set is made in it."""
    format: Literal["auto", "coco", "roboflow", "yolo", "voc", "labelme", "objects365", "shards", "shapes"] = "auto"
    """Layout of the folder: COCO's, Roboflow's COCO export, YOLO's data.yaml or Darknet's obj.data, Pascal VOC's XML, LabelMe's
    JSON, Objects365's, tar shards, our made-up shapes, or found out by looking."""
    batch_size: int | Literal["auto"] = 4
    """Images of a batch, in each process; auto (with train.effective_batch): the largest that fits into memory."""
    eval_batch_size: int | None = None
    """Images of an evaluation batch, in each process (default: batch_size)."""
    num_workers: int = 2
    """Loader processes, for each training process; 0 loads in the training process itself."""
    augment: str | list[dict[str, Any]] = "default"
    """Recipe of the training images (none, default, flips, light, conservative, aggressive, aerial, industrial), or a list
    of torchvision v2 transforms by class_path."""
    mosaic: float = 0.0
    """Probability that a training sample shows parts of four pictures, each at 0.3 to 1 of its size."""
    copy_paste: float = 0.0
    """Probability that objects of another picture are pasted over a training sample, cut out by their masks, or else boxes."""
    mixup: float = 0.0
    """Probability that a training sample is blended with another picture, and has the objects of both."""
    mix_off_epochs: int = 0
    """Last epochs in which samples are not mixed, so that training ends on pictures as they are."""
    resize: Literal["stretch", "letterbox"] = "stretch"
    """How pictures become as large as the input, in training, evaluation and prediction: stretched to its shape, as published, or
    in their own shape (to whole patches), padded on the right or at the bottom."""
    multi_scale: bool = True
    """Train every step at a scale of its own around model.resolution."""
    expanded_scales: bool = True
    """Eleven scales instead of eight (with multi_scale)."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to learn; objects of others are left out, and their images stay (default: all classes)."""
    single_class: bool = False
    """Take all classes for one, called "object"."""
    fraction: float = 1.0
    """Share of the training images that is used; always the same ones, and more with a larger share."""
    sampling: Literal["uniform", "repeat_factor"] = "uniform"
    """uniform: each image once an epoch; repeat_factor: images of rare classes sqrt(repeat_threshold / share) times (LVIS)."""
    repeat_threshold: float = 0.1
    """Share of the images below which a class is rare (sampling "repeat_factor"), above 0 to 1; LVIS itself has 0.001."""
    label_map: Literal["contiguous", "coco"] = "contiguous"
    """Labels 0 to K-1 in the order of the category ids, or the category ids themselves as in the official COCO weights."""
    splits: dict[str, dict[str, str]] | None = None
    """COCO files of a layout of one's own, relative to dataset_dir: {train: {annotations: a.json, images: folder}, val: ...}."""
    val_fraction: float = 0.1
    """Share of the images that are the val split where one annotation file holds all, by a hash of their names."""
    allow_outside: bool = False
    """Use image files that the annotations name outside of the data set's folders."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """An image that cannot be read stops the run, or is named, counted and left out; evaluation counts its objects as missed."""
    max_bad_images: float = 0.1
    """Share of the images that may be bad, with on_bad_image skip, before the run stops all the same."""
    max_pixels: int = 178956970
    """Pixels of an image above which it is a bad one; what it decodes to would take three times as many bytes."""
    white_level: int | None = None
    """Value of white in images of more than 8 bits, such as 4095 (default: what the files say or the train split shows)."""
    timeout_seconds: float = 300.0
    """Seconds to wait for a batch of the loader processes before the run ends with a message; 0: for ever."""
    exif: Literal["apply", "refuse"] = "apply"
    """Turn images as their EXIF data says, in training, evaluation and prediction alike, or take such images for bad ones."""
    cache: Literal["none", "ram"] = "none"
    """ram: keep the image files in memory, once for each training process; refused if they do not fit."""
    prefetch_factor: int = 2
    """Batches that each loader process prepares in advance, at least; more where a step accumulates more of them."""
    persistent_workers: bool = True
    """Keep the loader processes from one epoch to the next."""
    start_method: Literal["auto", "fork", "spawn", "forkserver"] = "auto"
    """How loader processes are started; auto is the system's own way (spawn on Windows and macOS)."""

    def __post_init__(self) -> None:
        check_choices(self, "data")
        check_fields(self, "data", "1 or more, or auto", lambda value: value == "auto" or value >= 1, "batch_size")
        check_fields(self, "data", "1 or more", is_count, "prefetch_factor", "max_pixels")
        check_fields(self, "data", "between 0 and 1", is_fraction, "max_bad_images", *MIXED)
        check_fields(self, "data", "above 0 and at most 1", lambda value: 0 < value <= 1, "repeat_threshold", "fraction")
        check_fields(self, "data", "a list of different names", _are_names_or_none, "classes")
        check_fields(self, "data", "above 0 and below 1", lambda value: 0 < value < 1, "val_fraction")
        check_fields(self, "data", "1 or more", lambda value: value is None or value >= 1, "white_level")
        check_fields(self, "data", "1 or more", lambda value: value is None or value >= 1, "eval_batch_size")
        check_fields(self, "data", "{split: {annotations: file, images: folder}} for train, val and test, or some of them",
                     _is_paths_or_none, "splits")
        check_fields(self, "data", "0 or more", is_not_negative, "num_workers", "timeout_seconds", "mix_off_epochs")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, where and how exactly to train."""

    epochs: int = 100
    """Passes over the training images."""
    max_steps: int | None = None
    """End after so many optimizer steps, in the middle of an epoch too, unless train.epochs end before."""
    grad_accum_steps: int = 1
    """Batches of one optimizer update; the effective batch is batch_size x grad_accum_steps x processes."""
    effective_batch: int | None = None
    """Images of one optimizer update over all processes, for which grad_accum_steps follows from data.batch_size."""
    preflight: bool = False
    """Before the first step try the worst one, largest scale and most crowded images, and say how much memory it takes."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on GPUs and CPUs with instructions that multiply it, fp16 on other NVIDIA GPUs, fp32 elsewhere."""
    seed: int = 42
    """Seed of the weights, the data order, the augmentation and dropout."""
    deterministic: bool = False
    """Use only operations that repeat bit for bit (slower on GPUs)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    output_dir: str = "output"
    """Folder of the run's files."""
    save_every_steps: int = 0
    """Write checkpoint.pth also every so many steps; 0: after epochs only."""
    keep: int = 1
    """Earlier versions of checkpoint.pth that stay beside it, in case the newest is damaged."""
    keep_every_epochs: int = 0
    """Also keep the checkpoint after every so many epochs, as checkpoint_epoch_N.pth; 0: none."""
    keep_top: int = 0
    """Keep the weights of so many best evaluations, as checkpoint_best_step_N.pth, and use their mean if it is better; 0: off.
    A resumed run that keeps fewer deletes the others; with 0, or another eval.monitor, those that are there stay."""
    max_bad_steps: int = 20
    """Updates in a row with non-finite gradients (each is skipped) after which the run stops."""
    on_bad_steps: Literal["stop", "rollback"] = "stop"
    """After max_bad_steps: stop, or go back to the last checkpoint and on with other randomness, at most three times."""
    max_hours: float = 0.0
    """Stop with a valid checkpoint after so many hours; 0: no limit. Restarts by torchrun do not renew it."""
    timeout_minutes: float = 30.0
    """With several processes: when one has not moved for so long, all say where they are and end."""
    compile: bool = False
    """Compile model and loss (torch.compile): faster steps after some minutes of compiling."""
    sync_bn: bool = False
    """Batch norms take their statistics over all processes; refused for a model that has none, as ours."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a whole model in each (ddp), or its parameters divided over them (fsdp; needs ema off)."""

    def __post_init__(self) -> None:
        check_choices(self, "train")
        check_fields(self, "train", "not empty", bool, "output_dir")
        check_fields(self, "train", "1 or more", is_count, "epochs", "grad_accum_steps", "max_bad_steps")
        check_fields(self, "train", "1 or more, or null", lambda value: value is None or value >= 1, "max_steps",
                     "effective_batch")
        check_fields(self, "train", "0, or 2 or more, which have a mean", lambda value: value == 0 or value >= 2, "keep_top")
        check_fields(self, "train", "above 0", is_positive, "timeout_minutes")
        check_fields(self, "train", "0 or more", is_not_negative, "seed", "save_every_steps", "keep", "keep_every_epochs",
                     "max_hours")


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the weights, evaluated beside them."""

    enabled: bool = True
    """Keep an average."""
    decay: float = 0.993
    """What an update keeps of the average, once warmed up; 0 to 1."""
    tau: float = 100.0
    """Updates over which the decay grows from 0; 0: full decay at once."""
    update_every: int = 1
    """Steps from one update of the average to the next."""
    use_buffers: bool = True
    """Average floating-point buffers too, instead of copying them."""

    def __post_init__(self) -> None:
        check_fields(self, "ema", "between 0 and 1", is_fraction, "decay")
        check_fields(self, "ema", "0 or more", is_not_negative, "tau")
        check_fields(self, "ema", "1 or more", is_count, "update_every")


@dataclass(frozen=True, kw_only=True)
class DropConfig:
    """Stochastic depth in the ViT and dropout in the decoder."""

    drop_path: float = 0.0
    """Drop-path rate of the last ViT block; earlier blocks get linearly less."""
    dropout: float = 0.0
    """Dropout rate of the decoder."""
    mode: Literal["standard", "early", "late"] = "standard"
    """standard: all the time; early: until cutoff_epoch; late: from cutoff_epoch on."""
    schedule: Literal["constant", "linear"] = "constant"
    """Shape of the rate before the cutoff (mode "early"): as it is, or falling to 0."""
    cutoff_epoch: int = 0
    """Epoch at which modes "early" and "late" switch."""

    def __post_init__(self) -> None:
        check_choices(self, "drop")
        check_fields(self, "drop", "0 or more and below 1", lambda value: 0 <= value < 1, "drop_path", "dropout")
        check_fields(self, "drop", "0 or more", is_not_negative, "cutoff_epoch")
        if self.schedule == "linear" and self.mode != "early":
            raise InputError(f'drop.schedule: "linear" falls to 0 at the cutoff, which drop.mode {self.mode!r} does not do; use '
                             'drop.mode "early", or "constant"')
        if self.cutoff_epoch and self.mode == "standard":
            raise InputError(f'drop.cutoff_epoch: {self.cutoff_epoch} changes nothing with drop.mode "standard"; use "early" or '
                             '"late", or leave it out')


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Stopping when the metric of eval.monitor no longer improves; the better of the weights and their average counts."""

    enabled: bool = False
    """Stop early."""
    patience: int = 10
    """Evaluations in a row without improvement after which the run stops."""
    min_delta: float = 0.001
    """What counts as improvement."""
    use_ema: bool = False
    """Look at the average's metric alone."""
    check_finite: bool = True
    """Stop at once when the metric is not finite."""
    stopping_threshold: float | None = None
    """Stop at once when the metric is better than this: above it, or below it where less is better."""
    divergence_threshold: float | None = None
    """Stop at once when the metric is worse than this."""
    verbose: bool = False
    """Log after each evaluation how far the patience goes."""

    def __post_init__(self) -> None:
        check_fields(self, "early_stopping", "1 or more", is_count, "patience")
        check_fields(self, "early_stopping", "0 or more", is_not_negative, "min_delta")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured on the validation and test images."""

    every_epochs: int = 1
    """Evaluate after every so many epochs, and after the last."""
    max_dets: int = 500
    """Detections of an image that count; COCO's own tables use 100."""
    per_class: bool = True
    """Also report the AP of each class."""
    models: Literal["both", "regular", "ema"] = "both"
    """Which weights are evaluated: the trained ones, their average, or both."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "fp32"
    """Precision of evaluations; with fp32 the numbers hardly depend on the machine."""
    sets: dict[str, str] = field(default_factory=dict)
    """Further data sets to evaluate with the val split, {night: folder or address}: night/mAP_50_95 and so on. Their val split is
    taken, or test, or train, whichever there is; classes are found by name."""
    loss: bool = False
    """Also measure the training losses on the evaluated images, in the same forward: val/loss, val/loss_ce, val/ema_loss, ..."""
    run_test: bool = False
    """Evaluate the best weights on the test split at the end."""
    monitor: str | None = None
    """Metric that decides about best checkpoints and early stopping, without its prefix (val/, val/ema_): mAP_50, F1, AP/<class>,
    loss (less is better; needs eval.loss), ... (default: mAP_50_95, of segmentation variants segm_mAP_50_95)."""
    skip_first_epochs: int = 0
    """Evaluations after so many epochs from the start count neither for the best checkpoint nor for early stopping."""

    def __post_init__(self) -> None:
        check_choices(self, "eval")
        check_fields(self, "eval", "1 or more", is_count, "every_epochs", "max_dets")
        check_fields(self, "eval", "0 or more", is_not_negative, "skip_first_epochs")
        check_fields(self, "eval", f"{{name: path}}, names of letters, digits, - and _ that are not {', '.join(RESERVED)}",
                     _are_sets, "sets")
        check_fields(self, "eval", "a name without val/ or ema_ before it (the average is followed by its own)",
                     lambda name: name is None or name and not name.startswith(("val/", "ema_")), "monitor")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes down; metrics.jsonl is always written."""

    every_steps: int = 20
    """Training losses are written every so many steps."""
    tensorboard: bool = True
    """Write TensorBoard events into output_dir."""
    csv: bool = False
    """Write metrics.csv too, a row a step."""
    wandb: str | None = None
    """Project of Weights & Biases to log to; needs the extra [wandb]. WANDB_MODE=offline needs no network."""
    mlflow: str | None = None
    """Experiment of MLflow to log to; needs the extra [mlflow]. MLFLOW_TRACKING_URI says where, default ./mlflow.db."""
    progress: bool = True
    """Show a progress bar for each epoch (on terminals and in notebooks); the table, a row an epoch, is always shown."""
    plots: bool = True
    """Draw pictures into output_dir: training samples, the worst predictions of each evaluation, curves."""
    report: bool | None = None
    """Write report.html into output_dir at the end: results, errors, data and settings on one page (default: as log.plots)."""

    def __post_init__(self) -> None:
        check_fields(self, "log", "1 or more", is_count, "every_steps")
        check_fields(self, "log", "a name, or null", is_name_or_none, "wandb", "mlflow")
