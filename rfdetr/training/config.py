"""The configuration of a run: which detector, and all sections together."""

import os
from dataclasses import dataclass, replace
from typing import Any

from rfdetr.config import VARIANTS, ModelConfig
from rfdetr.errors import InputError
from rfdetr.fields import check_fields
from rfdetr.losses.config import LossConfig
from rfdetr.training.parsing import read_config
from rfdetr.training.sections import (
    MIXED,
    DataConfig,
    DropConfig,
    EarlyStoppingConfig,
    EMAConfig,
    EvalConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which detector, and the weights that it starts from."""

    variant: str = "nano"
    """Name of a variant: nano, small, medium, base, large, large_deprecated; with masks seg_preview, seg_nano, seg_small,
    seg_medium, seg_large, seg_xlarge, seg_2xlarge; ours, for CPUs, pico and pico_seg. The other fields change it."""
    num_classes: int | None = None
    """Number of classes (default: those of the data set)."""
    resolution: int | tuple[int, int] | None = None
    """Input size in pixels, one side or [height, width] (default: the variant's)."""
    num_queries: int | None = None
    """Objects that an image can have at most, and detections that are kept (default: the variant's)."""
    group_detr: int | None = None
    """Query groups in training (default: the variant's)."""
    weights: str | None = None
    """Checkpoint to start from, official or ours, or "published": those of the variant, with a class head fitted to the classes
    of the data by name (default: random weights)."""
    ema_weights: bool = False
    """Start from the averaged weights that the checkpoint holds beside the trained ones."""
    resize_head: bool = False
    """Fit a class head of other classes: rows of a class of the same name are taken over, others start afresh. Off, an error."""
    backbone_weights: str | None = None
    """DINOv2 weights for the ViT alone: "timm" downloads them, or a file (default: random weights)."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained: names of modules or parameters, with * and ?, such as [backbone.encoder]."""
    gradient_checkpointing: bool = False
    """Compute the ViT blocks twice instead of keeping their activations: less memory, more time."""

    def __post_init__(self) -> None:
        if self.variant in ("xlarge", "2xlarge"):
            raise InputError(f"model.variant: {self.variant!r} is published under a restrictive licence, so it is left out here")
        check_fields(self, "model", f"one of {', '.join(VARIANTS)}", VARIANTS.__contains__, "variant")
        for name in ("resize_head", "ema_weights"):
            if getattr(self, name) and self.weights is None:
                raise InputError(f"model.{name}: true without model.weights changes nothing; name the checkpoint or leave it out")
        if self.weights is not None and self.backbone_weights is not None:
            raise InputError("model.backbone_weights: the ViT would be filled twice, since model.weights holds it too; "
                             "leave one of them out")
        check_fields(self, "model", "1 or more", lambda value: value is None or value >= 1, "num_classes")
        self.architecture()  # refuses impossible values now; the classes are known later

    def architecture(self, num_classes: int | None = None) -> ModelConfig:
        """Return the variant with this section's changes, for the `num_classes` of the data set if the section has none.

        A position table as large as the variant's input follows the resolution; a table of its own size stays.
        """
        base = VARIANTS[self.variant]
        changes: dict[str, Any] = {"num_classes": self.num_classes or num_classes or base.num_classes}
        if self.group_detr is not None:
            changes["group_detr"] = self.group_detr
        if self.num_queries is not None:
            changes |= {"num_queries": self.num_queries, "num_select": self.num_queries}
        if self.resolution is not None:
            changes["resolution"] = self.resolution
            if base.positional_encoding_size == base.input_size[0] // base.patch_size:
                changes["positional_encoding_size"] = max(replace(base, **changes).input_size) // base.patch_size
        return replace(base, **changes)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, section by section: what a YAML file holds."""

    model: DetectorConfig = DetectorConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    ema: EMAConfig = EMAConfig()
    drop: DropConfig = DropConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    hooks: tuple[dict, ...] = ()  # users' hooks: class_path and init_args

    @classmethod
    def from_yaml(cls, path: str | os.PathLike, **overrides: Any) -> "RunConfig":
        """Read a YAML file; ``train={"epochs": 2}`` or ``**{"train.epochs": 2}`` goes over what it says.

        Raises:
            InputError: the file is missing or wrong, or a setting is not possible.
        """
        return read_config(cls, path, overrides)

    @property
    def monitor(self) -> str:
        """The metric that decides about best checkpoints and early stopping, without its prefix."""
        prefix = "segm_" if self.model.architecture().segmentation_head else ""
        return self.eval.monitor or f"{prefix}mAP_50_95"

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other across sections."""
        _check_average(self)
        _check_classes(self)
        _check_epochs(self)
        better, worse = self.early_stopping.stopping_threshold, self.early_stopping.divergence_threshold
        if better is not None and worse is not None and (
                better > worse if self.monitor.startswith("loss") else better < worse):
            raise InputError(f"early_stopping.stopping_threshold: {better} is worse than divergence_threshold, {worse}, so any "
                             f"{self.monitor} would stop the run")
        if self.data.batch_size == "auto" and (self.train.effective_batch is None or self.train.grad_accum_steps != 1):
            raise InputError('data.batch_size: "auto" needs train.effective_batch, for which train.grad_accum_steps follows; set '
                             "that, and leave this out")
        if self.train.strategy == "fsdp" and (self.data.batch_size == "auto" or self.train.preflight):
            name = "data.batch_size: auto" if self.data.batch_size == "auto" else "train.preflight: true"
            raise InputError(f"{name} tries a step in each process alone, which is not possible with train.strategy fsdp")
        if self.train.strategy == "fsdp" and self.train.precision == "fp16":
            raise InputError("train.precision: fp16 is not possible with train.strategy fsdp; use bf16 or fp32")
        if self.monitor.startswith("segm_") and not self.model.architecture().segmentation_head:
            raise InputError(f"eval.monitor: {self.monitor} is a metric of masks, which {self.model.variant} does not have; "
                             f"use {self.monitor.removeprefix('segm_')}, or a segmentation variant")


def _check_average(config: RunConfig) -> None:
    """Refuse to use an average of the weights that is not kept, or to keep one where that is impossible."""
    stopping = config.early_stopping
    if not config.ema.enabled and config.eval.models == "ema":
        raise InputError('eval.models: "ema" needs the average; set ema.enabled to true, or evaluate "regular"')
    if not config.ema.enabled and stopping.enabled and stopping.use_ema:
        raise InputError("early_stopping.use_ema: true needs the average; set ema.enabled to true")
    if config.eval.models == "regular" and stopping.enabled and stopping.use_ema:
        raise InputError('early_stopping.use_ema: true needs the average to be evaluated; set eval.models to "both" or "ema"')
    if config.train.strategy == "fsdp" and config.ema.enabled:
        raise InputError("train.strategy: fsdp divides the weights over processes, where no average is kept; "
                         "set ema.enabled to false, or use ddp")


def _check_classes(config: RunConfig) -> None:
    """Refuse to tell the classes apart where all are taken for one."""
    if config.data.single_class:
        for name, is_set in {"loss.class_weights": config.loss.class_weights is not None,
                             "data.sampling": config.data.sampling == "repeat_factor"}.items():
            if is_set:
                raise InputError(f"{name}: tells classes apart, of which data.single_class makes one; leave one of the two out")


def _check_epochs(config: RunConfig) -> None:
    """Refuse what would only happen after the run."""
    epochs = config.train.epochs
    if config.drop.mode != "standard" and config.drop.cutoff_epoch > epochs:
        raise InputError(f"drop.cutoff_epoch: {config.drop.cutoff_epoch} is after the last epoch ({epochs})")
    off = config.data.mix_off_epochs
    if off >= epochs and any(getattr(config.data, name) for name in MIXED):
        raise InputError(f"data.mix_off_epochs: with {off} of {epochs} epochs (train.epochs) nothing is mixed; make it smaller")
    if config.train.keep_every_epochs > epochs:
        raise InputError(f"train.keep_every_epochs: {config.train.keep_every_epochs} is after the last epoch ({epochs})")
    ends = {*range(config.eval.every_epochs, epochs, config.eval.every_epochs), epochs}
    num_counted = sum(epoch > config.eval.skip_first_epochs for epoch in ends)
    if num_counted < config.train.keep_top and num_counted:
        raise InputError(f"train.keep_top: {config.train.keep_top}, but only {num_counted} evaluations count (train.epochs, "
                         "eval.every_epochs, eval.skip_first_epochs); make it smaller")
    if config.eval.skip_first_epochs >= epochs:
        raise InputError(f"eval.skip_first_epochs: with {config.eval.skip_first_epochs} of {epochs} epochs (train.epochs) no "
                         "evaluation would count; make it smaller")
