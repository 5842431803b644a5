"""Sizes of the ViT encoders; the head width is 64 everywhere."""

from typing import NamedTuple


class EncoderSize(NamedTuple):
    width: int
    depth: int
    num_heads: int


ENCODERS: dict[str, EncoderSize] = {
    "dinov2_windowed_small": EncoderSize(384, 12, 6),
    "dinov2_windowed_base": EncoderSize(768, 12, 12),
    "pico": EncoderSize(192, 6, 3),  # ours: trains from scratch on a CPU
}
