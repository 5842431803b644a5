"""The detector's architecture: `ModelConfig`, a frozen dataclass that checks itself when it is made, and the `VARIANTS`."""

from dataclasses import dataclass
from typing import NamedTuple

from rfdetr.errors import InputError


class EncoderSize(NamedTuple):
    """Size of a ViT encoder; the head width is 64 everywhere."""

    width: int
    depth: int
    num_heads: int


ENCODERS: dict[str, EncoderSize] = {
    "dinov2_windowed_small": EncoderSize(384, 12, 6),
    "dinov2_windowed_base": EncoderSize(768, 12, 12),
    "pico": EncoderSize(192, 6, 3),  # ours: trains from scratch on a CPU
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one detector, under the published field names.

    Change a variant with ``dataclasses.replace(VARIANTS["nano"], num_queries=100)``.
    """

    encoder: str = "dinov2_windowed_small"  # a key of ENCODERS
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
    def cell_size(self) -> int:
        """Pixels a side of a cell of the coarsest feature map; where padding begins between two of them, boxes would be off."""
        return self.patch_size * 2 ** max(0, int(self.projector_scale[-1].removeprefix("P")) - 4)

    @property
    def input_size(self) -> tuple[int, int]:
        """Network input (H, W) in pixels."""
        height, width = (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution
        return height, width


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
