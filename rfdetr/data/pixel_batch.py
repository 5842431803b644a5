"""Batches of pictures as bytes, a quarter of what they take as numbers, until they are where they are needed."""

import torch

from rfdetr.data.images import normalize, to_float
from rfdetr.nested_tensor import NestedTensor


class PixelBatch(NestedTensor):
    """Pictures (B, 3, H, W) uint8 on their way from a loader; `to` makes the model's input of them.

    Worker processes, pinned memory and the way to a device then hold bytes, and the device does the arithmetic.
    """

    def to(self, device: torch.device | str, non_blocking: bool = False, dtype: torch.dtype | None = None) -> NestedTensor:
        """Copy the bytes to a device, and normalise them there: (B, 3, H, W) float32, zero where the padding is."""
        copied = super().to(device, non_blocking=non_blocking)
        images = normalize(to_float(copied.tensors))
        if copied.has_padding:
            images = images.masked_fill_(copied.mask[:, None], 0.0)
        return NestedTensor(images if dtype is None else images.to(dtype), copied.mask, has_padding=copied.has_padding)
