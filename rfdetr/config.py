"""Configuration: the detector's architecture (`ModelConfig`, `VARIANTS`) and the sections of a run's YAML file.

Everything is a frozen dataclass that checks itself when it is made. Only `rfdetr/build.py` and `tools/` read these;
every other module is given plain values.
"""

from dataclasses import dataclass, replace

from rfdetr.encoders import ENCODERS
from rfdetr.errors import InputError
from rfdetr.run_config import (
    DataConfig,
    DropConfig,
    EarlyStoppingConfig,
    EMAConfig,
    EvalConfig,
    LogConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
    check_fields,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one detector, under the published field names.

    Change a variant with ``dataclasses.replace(VARIANTS["nano"], num_queries=100)``.
    """

    encoder: str = "dinov2_windowed_small"  # a key of rfdetr.encoders.ENCODERS
    out_feature_indexes: tuple[int, ...] = (3, 6, 9, 12)  # taps: "after n blocks"; also the indices of the global blocks
    patch_size: int = 16  # pixels
    num_windows: int = 2  # attention windows a side
    resolution: int | tuple[int, int] = 384  # pixels, or (H, W)
    positional_encoding_size: int = 24  # patches a side of the learned position table
    dec_layers: int = 2
    hidden_dim: int = 256  # decoder width
    dim_feedforward: int = 2048  # hidden width of the decoder's FFN
    sa_nheads: int = 8  # self-attention heads
    ca_nheads: int = 16  # deformable cross-attention heads
    dec_n_points: int = 2  # sampling points a head and level
    num_queries: int = 300  # a group
    num_select: int = 300  # detections kept by PostProcess
    projector_scale: tuple[str, ...] = ("P4",)  # feature levels, ascending
    group_detr: int = 13  # query groups in training
    num_classes: int = 90  # classes; the head has one logit more
    segmentation_head: bool = False
    mask_downsample_ratio: int = 4  # input pixels a mask pixel

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise InputError(f"model.encoder: unknown encoder {self.encoder!r}; known: {', '.join(ENCODERS)}")
        for name in ("patch_size", "num_windows", "positional_encoding_size", "dec_layers", "hidden_dim", "num_queries",
                     "num_select", "group_detr", "num_classes", "dec_n_points", "dim_feedforward", "mask_downsample_ratio"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        for side in self.input_size:
            if side < 1 or side % self.size_divisor:
                nearest = max(1, round(side / self.size_divisor)) * self.size_divisor
                raise InputError(
                    f"model.resolution: {self.resolution} is not divisible by patch_size x num_windows = "
                    f"{self.patch_size} x {self.num_windows} = {self.size_divisor}; the nearest valid side is {nearest}"
                )
        for name in ("sa_nheads", "ca_nheads"):
            if getattr(self, name) < 1 or self.hidden_dim % getattr(self, name):
                raise InputError(f"model.{name}: {getattr(self, name)} heads do not divide hidden_dim={self.hidden_dim}")
        if not self.projector_scale or list(self.projector_scale) != sorted(set(self.projector_scale)):
            raise InputError(f"model.projector_scale: {self.projector_scale} must be ascending, for example ('P3', 'P5')")

    @property
    def size_divisor(self) -> int:
        """What both sides of an input must be divisible by, in pixels."""
        return self.patch_size * self.num_windows

    @property
    def input_size(self) -> tuple[int, int]:
        """Network input (H, W) in pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else tuple(self.resolution)


def _official(resolution: int, dec_layers: int, **fields) -> ModelConfig:
    """A variant of the 2026 family: 16-pixel patches, 2 x 2 windows, position table as large as the input."""
    fields = {"patch_size": 16, "num_windows": 2, **fields}
    grid = resolution // fields["patch_size"]
    return ModelConfig(resolution=resolution, dec_layers=dec_layers, **{"positional_encoding_size": grid, **fields})


def _segmentation(resolution: int, dec_layers: int, queries: int, num_windows: int = 2) -> ModelConfig:
    return _official(resolution, dec_layers, patch_size=12, num_windows=num_windows, num_queries=queries,
                     num_select=queries, segmentation_head=True)


_DEPRECATED = {"out_feature_indexes": (2, 5, 8, 11), "patch_size": 14, "num_windows": 4, "positional_encoding_size": 37}
_PICO = {"encoder": "pico", "out_feature_indexes": (2, 4, 5, 6), "num_windows": 1, "hidden_dim": 128, "dim_feedforward": 512,
         "sa_nheads": 4, "ca_nheads": 8, "num_queries": 100, "num_select": 100, "group_detr": 5}

VARIANTS: dict[str, ModelConfig] = {
    "nano": _official(384, 2),
    "small": _official(512, 3),
    "medium": _official(576, 4),
    "large": _official(704, 4),
    "base": _official(560, 3, **_DEPRECATED),
    "large_deprecated": _official(560, 3, **_DEPRECATED, encoder="dinov2_windowed_base", hidden_dim=384, sa_nheads=12,
                                  ca_nheads=24, dec_n_points=4, projector_scale=("P3", "P5")),
    "pico": _official(256, 2, **_PICO),
    "seg_preview": _segmentation(432, 4, 200),
    "seg_nano": _segmentation(312, 4, 100, num_windows=1),
    "seg_small": _segmentation(384, 4, 100),
    "seg_medium": _segmentation(432, 5, 200),
    "seg_large": _segmentation(504, 5, 200),
    "seg_xlarge": _segmentation(624, 6, 300),
    "seg_2xlarge": _segmentation(768, 6, 300),
    "pico_seg": _official(256, 2, **_PICO, segmentation_head=True),
}


@dataclass(frozen=True, kw_only=True)
class ModelSection:
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
    """Checkpoint to start from, official or ours (default: random weights)."""
    ema_weights: bool = False
    """Start from the averaged weights that the checkpoint holds beside the trained ones."""
    resize_head: bool = False
    """Fit a class head of other classes: rows that are too many are cut, missing ones repeat the first. Off, that is an error."""
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
        changes = {"num_classes": self.num_classes or num_classes or base.num_classes}
        if self.group_detr is not None:
            changes["group_detr"] = self.group_detr
        if self.num_queries is not None:
            changes |= {"num_queries": self.num_queries, "num_select": self.num_queries}
        if self.resolution is not None:
            changes["resolution"] = self.resolution
            if base.positional_encoding_size == base.resolution // base.patch_size:
                changes["positional_encoding_size"] = max(replace(base, **changes).input_size) // base.patch_size
        return replace(base, **changes)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: what a YAML file for `tools/train.py` holds."""

    model: ModelSection = ModelSection()
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

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other across sections."""
        _check_average(self)
        _check_epochs(self)
        if self.train.strategy == "fsdp" and self.train.precision == "fp16":
            raise InputError("train.precision: fp16 is not possible with train.strategy fsdp; use bf16 or fp32")
        if self.eval.monitor.startswith("segm_") and not self.model.architecture().segmentation_head:
            raise InputError(f"eval.monitor: {self.eval.monitor} is a metric of masks, which {self.model.variant} does not have; "
                             f"use {self.eval.monitor.removeprefix('segm_')}, or a segmentation variant")


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


def _check_epochs(config: RunConfig) -> None:
    """Refuse what would only happen after the run."""
    epochs = config.train.epochs
    if config.drop.mode != "standard" and config.drop.cutoff_epoch > epochs:
        raise InputError(f"drop.cutoff_epoch: {config.drop.cutoff_epoch} is after the last epoch ({epochs})")
    if config.eval.skip_first_epochs >= epochs:
        raise InputError(f"eval.skip_first_epochs: with {config.eval.skip_first_epochs} of {epochs} epochs (train.epochs) no "
                         "evaluation would count; make it smaller")
