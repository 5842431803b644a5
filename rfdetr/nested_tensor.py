"""A batch of images padded to one size, with the mask that says where the padding is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rfdetr.errors import InputError


class NestedTensor:
    """Images of different sizes in one tensor, top-left aligned and zero padded.

    Args:
        tensors: (B, 3, H, W).
        mask: (B, H, W) bool, True = padding; None stands for "no padding at all".
        has_padding: False promises that the mask is False everywhere, which saves the model all work on it without
            looking at the values (a look would wait for the GPU). Known for free where the batch is made.
    """

    def __init__(self, tensors: Tensor, mask: Tensor | None = None, *, has_padding: bool = True) -> None:
        if mask is not None and mask.shape != (tensors.shape[0], *tensors.shape[-2:]):
            raise ValueError(f"NestedTensor: mask {tuple(mask.shape)} does not fit tensors {tuple(tensors.shape)}; "
                             "expected (B, H, W) for tensors (B, 3, H, W)")
        self.tensors = tensors
        self.mask = mask
        self.has_padding = has_padding and mask is not None

    def __getitem__(self, images: slice) -> "NestedTensor":
        """Return some images of the batch."""
        mask = None if self.mask is None else self.mask[images]
        return type(self)(self.tensors[images], mask, has_padding=self.has_padding)

    def to(self, device: torch.device | str, non_blocking: bool = False,
           dtype: torch.dtype | None = None) -> "NestedTensor":
        """Copy to a device; `dtype` is for the images only."""
        tensors = self.tensors.to(device=device, dtype=dtype, non_blocking=non_blocking)
        mask = None if self.mask is None else self.mask.to(device=device, non_blocking=non_blocking)
        return NestedTensor(tensors, mask, has_padding=self.has_padding)

    def pin_memory(self) -> "NestedTensor":
        """Copy to page-locked memory (the DataLoader calls this)."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return type(self)(self.tensors.pin_memory(), mask, has_padding=self.has_padding)

    def __len__(self) -> int:
        return self.tensors.shape[0]

    @property
    def shape(self) -> torch.Size:
        return self.tensors.shape

    @property
    def device(self) -> torch.device:
        return self.tensors.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors.dtype

    def __repr__(self) -> str:
        return f"NestedTensor({tuple(self.shape)}, {self.dtype}, {self.device}, has_padding={self.has_padding})"


def _round_up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor


def pad_images(images: Sequence[Tensor], size_divisor: int = 1, min_size: tuple[int, int] = (0, 0)) -> NestedTensor:
    """Stack images (3, h, w) into a batch as large as the largest of them and `min_size`, sides rounded up to `size_divisor`."""
    if not images:
        raise InputError("an empty list of images cannot be made into a batch; give at least one image (3, h, w)")
    height = _round_up(max(min_size[0], *(image.shape[-2] for image in images)), size_divisor)
    width = _round_up(max(min_size[1], *(image.shape[-1] for image in images)), size_divisor)
    batch_size, channels = len(images), images[0].shape[0]
    if all(image.shape[-2:] == (height, width) for image in images):
        return NestedTensor(torch.stack(tuple(images)))
    tensors = images[0].new_zeros(batch_size, channels, height, width)
    mask = torch.ones(batch_size, height, width, dtype=torch.bool, device=tensors.device)
    for index, image in enumerate(images):
        h, w = image.shape[-2:]
        tensors[index, :, :h, :w] = image
        mask[index, :h, :w] = False
    return NestedTensor(tensors, mask)


def collate(batch: Sequence[tuple[Tensor, dict]], size_divisor: int = 1) -> tuple[NestedTensor, list[dict]]:
    """Make a batch of items (image (3, h, w), target): images padded to the targets' `canvas`, and the list of targets."""
    images, targets = zip(*batch) if batch else ((), ())
    canvases = [target["canvas"].tolist() for target in targets if "canvas" in target]
    return pad_images(images, size_divisor, tuple(map(max, zip((0, 0), *canvases)))), list(targets)
