"""Somebody's own data set in a run: any torch `Dataset` of ``(image, target)`` pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from rfdetr.config import ModelConfig
from rfdetr.data import DetectionDataset, LabelMap, SampleKey
from rfdetr.data.images import fit_size, normalize, to_float, to_pixels
from rfdetr.data.transforms import seeded_globals
from rfdetr.errors import InputError


class OwnDataset(Dataset):
    """Give the samples of a data set of pairs as the loaders, the evaluation and the pictures of a run want them.

    An image is uint8 RGB, as a tensor (3, h, w), an array (h, w, 3) or a PIL image, and is resized and normalised like every
    other picture; or a float tensor (3, H, W), which is taken as it is. A target has `boxes` (M, 4) cxcywh in [0, 1] and `labels`
    (M,), and may have `masks` (M, h, w) bool of the image's size, `iscrowd`, `area` (in pixels of the image), `image_id`.
    What the data set draws at random comes from the global generators, which are seeded for each sample of the training.
    """

    def __init__(
        self, dataset: Dataset, label_map: LabelMap, image_size: tuple[int, int], *, training: bool, letterbox: int | None = None
    ) -> None:
        self.letterbox = letterbox
        self.dataset, self.label_map, self.image_size, self.training = dataset, label_map, image_size, training

    @classmethod
    def of(
        cls, dataset: Dataset, architecture: ModelConfig, *, training: bool, num_classes: int | None = None,
        label_map: LabelMap | None = None, letterbox: int | None = None,
    ) -> Dataset:
        """Wrap a data set, unless `open_dataset` made it.

        Args:
            letterbox: see `DetectionDataset`.
            label_map: its classes (default: its attribute `class_names`, else as many as `num_classes` says).
        """
        if isinstance(dataset, DetectionDataset):
            return dataset
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise InputError(f"train_set, val_set: {type(dataset).__name__} needs __getitem__ and __len__, as a Dataset has")
        if label_map is None:
            names = getattr(dataset, "class_names", None) or [str(label) for label in range(num_classes or 0)]
            if not names:
                raise InputError(f"train_set: {type(dataset).__name__} has no `class_names`; give it that attribute, or set "
                                 "model.num_classes")
            label_map = LabelMap(tuple(range(len(names))), tuple(map(str, names)))
        return cls(dataset, label_map, architecture.input_size, training=training, letterbox=letterbox)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey | int) -> tuple[Tensor, dict[str, Tensor]]:
        image, target = self._keyed(key)
        return normalize(to_float(image)) if image.dtype == torch.uint8 else image, target

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Return samples as DataLoader asks for them: with images that are not normalised yet as uint8, see `PixelBatch`."""
        return [self._keyed(key) for key in keys]

    def _keyed(self, key: SampleKey | int) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(key, SampleKey):
            return self._sample(range(len(self))[key], self.image_size)
        with seeded_globals(int(key.generator().integers(2**62))):
            return self._sample(key.index, key.size or self.image_size)

    def sample_bytes(self, size: tuple[int, int] | None = None) -> float:
        """Return about how many bytes a sample of (H, W) takes on its way out of a worker process."""
        height, width = size or self.image_size
        return 3 * 4 * height * width

    def share_memory(self) -> None:
        """Leave it to the data set how it reaches worker processes that are not forked."""

    def _sample(self, index: int, size: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        sample = self.dataset[index]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise InputError(f"{self._place(index)} is not a pair of image and target, but {type(sample).__name__}")
        image, target = sample
        if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
            raise InputError(f"{self._place(index)}: the target must be a dict with boxes and labels")
        orig_size = _size_of(image)
        is_ready = isinstance(image, Tensor) and image.is_floating_point()
        ready = image if is_ready else to_pixels(image, fit_size(*orig_size, size, self.letterbox))
        return ready, self._target(index, target, orig_size, tuple(ready.shape[-2:]), None if is_ready else size)

    def _target(
        self, index: int, given: Mapping[str, Any], orig_size: tuple[int, int], size: tuple[int, int],
        canvas: tuple[int, int] | None,
    ) -> dict[str, Tensor]:
        boxes = torch.as_tensor(given["boxes"], dtype=torch.float32).reshape(-1, 4)
        labels = torch.as_tensor(given["labels"], dtype=torch.int64).reshape(-1)
        self._check(index, boxes, labels)
        area = boxes[:, 2:].prod(dim=1) * orig_size[0] * orig_size[1]
        target = {
            "boxes": boxes, "labels": labels, "image_id": torch.as_tensor(given.get("image_id", index)).reshape(1),
            "area": torch.as_tensor(given.get("area", area), dtype=torch.float32),
            "iscrowd": torch.as_tensor(given.get("iscrowd", torch.zeros_like(labels)), dtype=torch.int64),
            "orig_size": torch.tensor(orig_size), "size": torch.tensor(size),
        }
        if "masks" in given:
            masks = torch.as_tensor(given["masks"], dtype=torch.bool).reshape(-1, *orig_size)
            target["masks"] = F.resize(masks, list(size), InterpolationMode.NEAREST_EXACT) if self.training else masks
        if self.letterbox is not None and canvas is not None:
            target["canvas"] = torch.tensor(canvas)
            if "masks" in given and self.training:
                target["masks"] = pad(target["masks"], (0, canvas[1] - size[1], 0, canvas[0] - size[0]))
        return target

    def _check(self, index: int, boxes: Tensor, labels: Tensor) -> None:
        if len(boxes) != len(labels):
            raise InputError(f"{self._place(index)}: {len(boxes)} boxes and {len(labels)} labels")
        if not torch.isfinite(boxes).all() or (boxes.abs() > 2).any():
            raise InputError(f"{self._place(index)}: boxes must be cxcywh as fractions of the image, not {boxes.tolist()[:2]}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.label_map.names):
            raise InputError(f"{self._place(index)}: labels must be below {len(self.label_map.names)}, not {labels.tolist()[:8]}")

    def _place(self, index: int) -> str:
        return f"{type(self.dataset).__name__}[{index}]"


def _size_of(image: Tensor | np.ndarray | Image.Image | Sequence) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    return int(height), int(width)
