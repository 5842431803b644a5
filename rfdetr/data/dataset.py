"""The data set: images and targets of one split, made ready for the model at access."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from rfdetr.data.annotations import Annotations
from rfdetr.data.images import MAX_PIXELS, ImageError, fit_size, normalize, read_image, resize, to_bytes, to_float, to_pixels
from rfdetr.data.label_map import LabelMap
from rfdetr.data.mixing import Cell, Mixing, covering
from rfdetr.data.recipes import Recipe
from rfdetr.data.samplers import SampleKey, repeat_factors
from rfdetr.data.scene import Scene
from rfdetr.data.segmentations import draw, draw_view
from rfdetr.data.transforms import apply_transforms
from rfdetr.data.views import View
from rfdetr.errors import InputError

GREY = 124  # about ImageNet's mean, of the picture in place of one that cannot be read


class DetectionDataset(Dataset):
    """Images and COCO-style targets of one split; `open_dataset` makes it, whatever format the files have.

    An item is ``(image (3, H, W) float32 normalised, target)``. With a `SampleKey` it is augmented and has the key's size; with a
    plain index it is the evaluation's sample. The target holds `boxes` (M, 4) cxcywh in fractions of the image (cut at its edge
    when training, as annotated when evaluating), `labels` (M,), `image_id` (1,), `area` (M,) in pixels of the original as
    annotated, `iscrowd` (M,), `orig_size` (2,) and `size` (2,) h, w, and if asked for `masks` (M, h, w) bool: of the size of the
    image when training, of the original when evaluating.

    Args:
        augment: a recipe, or a transform of one's own (transforms.py), for samples asked for with a key.
        image_size: (H, W) where the key does not say.
        on_bad_image: "fail", or "skip": a picture that cannot be read gives a grey one whose target says why in `bad_image`
            (str). When training it has no objects and the loader leaves it out; in evaluation its objects count as missed.
        exif: "apply" or "refuse" a picture's orientation (images.py).
        white_level, max_pixels: see `read_image`.
        letterbox: pictures keep their shape, to whole cells of so many pixels (`fit_size`), and the target says in `canvas` (2,)
            h, w what the batch pads them to, at the bottom and on the right; masks of a training sample are padded here. None:
            they fill the input.
        mixing: mixes samples asked for with a key; None: each shows one picture.
    """

    def __init__(
        self,
        annotations: Annotations,
        label_map: LabelMap,
        *,
        split: str,
        image_size: tuple[int, int],
        augment: Recipe | Callable,
        report: dict[str, int],
        on_bad_image: str = "fail",
        exif: str = "apply",
        white_level: int | None = None,
        max_pixels: int = MAX_PIXELS,
        letterbox: int | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        if white_level is not None and white_level < 1:
            raise InputError(f"data.white_level: {white_level} is not possible; it must be 1 or more, or left out")
        if max_pixels < 1:
            raise InputError(f"data.max_pixels: {max_pixels} is not possible; it must be 1 or more")
        for name, value, choices in (("on_bad_image", on_bad_image, ("fail", "skip")), ("exif", exif, ("apply", "refuse"))):
            if value not in choices:
                raise InputError(f"data.{name}: {value!r} is unknown; it must be {' or '.join(choices)}")
        self.label_map, self.split, self.report = label_map, split, report
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.augment, self.on_bad_image, self.exif = augment, on_bad_image, exif
        self.white_level, self.max_pixels, self.letterbox = white_level, max_pixels, letterbox
        self.mixing = mixing
        self._annotations = annotations

    @property
    def num_images(self) -> int:
        return len(self._annotations.image_ids)

    @property
    def num_boxes(self) -> int:
        return len(self._annotations.boxes)

    @property
    def object_counts(self) -> np.ndarray:
        """(N,) annotated objects of each image."""
        return np.diff(self._annotations.offsets)

    @property
    def with_masks(self) -> bool:
        return self._annotations.segmentations is not None

    def __len__(self) -> int:
        return self.num_images

    def class_counts(self) -> np.ndarray:
        """Number of objects of each label, (K,)."""
        return np.bincount(self._annotations.labels, minlength=len(self.label_map.names))

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """Return how often an epoch shows each image, (N,), where classes on less than this share of the images count as rare."""
        images = np.repeat(np.arange(len(self)), np.diff(self._annotations.offsets))
        return repeat_factors(images, self._annotations.labels, len(self), threshold)

    def image_path(self, index: int) -> Path:
        return self._annotations.image_path(index)

    def image_id(self, index: int) -> int:
        return int(self._annotations.image_ids[index])

    def __getitem__(self, key: SampleKey | int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, target = self._sample(key)
        return normalize(to_float(pixels)), target

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Return samples as DataLoader asks for them: with the image as (3, H, W) uint8, see `PixelBatch`."""
        return [self._sample(key) for key in keys]

    def _sample(self, key: SampleKey | int) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(key, SampleKey) and key.size is None:
            key = key._replace(size=self.image_size)
        try:
            if not isinstance(key, SampleKey):
                target = self._plain_target(index := range(len(self))[key])
                return to_pixels(self._read(index), tuple(target["size"].tolist())), target
            scene = self._mixed(key)
            return to_bytes(scene.pixels), self._train_target(key, scene)
        except ImageError as error:
            if self.on_bad_image == "fail":
                raise
            return self._blank(key, str(error))

    def sample_bytes(self, size: tuple[int, int] | None = None) -> float:
        """Return about how much memory a sample takes, for training at `size` (H, W), or for evaluation."""
        height, width = size or self.image_size
        num_bytes = height * width * (3 if self.letterbox is None else 4)  # and the mask of the padding
        if self.with_masks:
            pixels = height * width if size else self._annotations.image_sizes.prod(axis=1)
            num_pictures = self.mixing.num_pictures if size and self.mixing else 1
            num_bytes += num_pictures * float((np.diff(self._annotations.offsets) * pixels).mean())
        return num_bytes

    def share_memory(self) -> None:
        """Let worker processes that are not forked use the annotations without a copy each."""
        self._annotations = self._annotations.shared()

    def _plain_target(self, index: int) -> dict[str, Tensor]:
        rows, size = self._rows(index), self._size(index)
        masks = self._masks(index, rows, size, lambda encoded: draw(encoded, *size))
        objects = self._objects(rows, self._fractions(index, rows), masks)
        is_crowd = torch.from_numpy(self._annotations.is_crowd[rows].astype(np.int64))
        return self._target(index, *objects, is_crowd, fit_size(*size, self.image_size, self.letterbox), self.image_size)

    def _train_target(self, key: SampleKey, scene: Scene) -> dict[str, Tensor]:
        masks, (height, width) = scene.masks, scene.size
        if masks is not None:
            masks = pad(masks, (0, key.size[1] - width, 0, key.size[0] - height))
        objects = scene.boxes, scene.labels, scene.areas, masks, torch.zeros_like(scene.labels)  # no crowds
        return self._target(key.index, *objects, scene.size, key.size)

    def _mixed(self, key: SampleKey) -> Scene:
        if self.mixing is None or key.epoch >= self.mixing.end_epoch:
            return self._scene(key)
        try:
            return self.mixing.mix(key, len(self), self._scene)
        except ImageError:
            if self.on_bad_image == "fail":
                raise
            return self._scene(key)  # a partner is bad, unless this picture is, which says so here

    def _scene(self, key: SampleKey, cell: Cell | None = None) -> Scene:
        """Show a picture as its augmentation has it, at the size of the sample or covering a cell."""
        show = self._augmented if isinstance(self.augment, Recipe) else self._transformed
        return show(key, self.augment, cell)

    def _shown_size(self, height: float, width: float, key: SampleKey, cell: Cell | None) -> tuple[int, int]:
        """Return the (h, w) that a view of this shape is resized to."""
        size = fit_size(height, width, key.size, self.letterbox)
        return size if cell is None else covering(size, *cell)

    def _augmented(self, key: SampleKey, recipe: Recipe, cell: Cell | None) -> Scene:
        height, width = self._size(key.index)
        generator = key.generator()
        view = recipe.draw_view(generator, height, width)
        size = self._shown_size(*view.shape(height, width), key, cell)
        # cutting and resizing are one step, so only as many pixels as the result has need to be decoded
        pixels = self._read(key.index, min_size=_shown_at(view, size))
        view = view.snapped(*pixels.shape[-2:])
        pixels = recipe.change_colours(generator, to_float(_show(pixels, view, size)))

        rows = self._rows(key.index)
        boxes, visible = view.move_boxes(self._fractions(key.index, rows))
        kept = (visible > 0) & (visible >= recipe.min_visible)
        rows, boxes = rows[kept], boxes[kept]
        masks = self._masks(key.index, rows, size, lambda encoded: draw_view(encoded, height, width, view, size))
        return Scene(pixels, *self._objects(rows, boxes, masks))

    def _transformed(self, key: SampleKey, transform: Callable, cell: Cell | None) -> Scene:
        """Apply one's own transforms to the picture at its full size, then resize."""
        index = key.index
        pixels = self._read(index)
        rows = self._rows(index)
        height, width = self._size(index)
        masks = self._masks(index, rows, (height, width), lambda encoded: draw(encoded, height, width))
        labels = torch.from_numpy(self._annotations.labels[rows])
        seed = int(key.generator().integers(2**62))
        scene = apply_transforms(transform, pixels, self._annotations.boxes[rows], labels, masks, seed)
        size = self._shown_size(*scene.size, key, cell)
        pixels = scene.pixels if scene.pixels.dtype == torch.uint8 else to_bytes(scene.pixels)
        if (masks := scene.masks) is not None:
            masks = F.resize(masks, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
        return scene._replace(pixels=to_float(resize(pixels, size)), masks=masks)

    def _blank(self, key: SampleKey | int, message: str) -> tuple[Tensor, dict[str, Tensor | str]]:
        """Make the sample in place of one whose picture is bad."""
        if isinstance(key, SampleKey):
            masks = torch.zeros(0, *key.size, dtype=torch.bool) if self.with_masks else None
            pixels = torch.full((3, *key.size), GREY, dtype=torch.uint8)
            target = self._train_target(key, Scene(pixels, *self._objects(self._rows(key.index)[:0], np.zeros((0, 4)), masks)))
        else:
            target = self._plain_target(range(len(self))[key])
            pixels = torch.full((3, *target["size"].tolist()), GREY, dtype=torch.uint8)
        return pixels, {**target, "bad_image": message}

    def _objects(self, rows: np.ndarray, boxes: np.ndarray, masks: Tensor | None) -> tuple:
        """Return what a `Scene` has beside its pixels."""
        return boxes, *(torch.from_numpy(column[rows]) for column in (self._annotations.labels, self._annotations.areas)), masks

    def _target(
        self, index: int, boxes: np.ndarray, labels: Tensor, areas: Tensor, masks: Tensor | None, is_crowd: Tensor,
        size: tuple[int, int], canvas: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Make the target of objects whose boxes (n, 4) are xyxy in fractions of the image, which has this size on the canvas."""
        corners, far_corners = boxes[:, :2], boxes[:, 2:]
        cxcywh = np.concatenate([(corners + far_corners) / 2, far_corners - corners], axis=1).astype(np.float32)
        target = {
            "boxes": torch.from_numpy(cxcywh),
            "labels": labels,
            "image_id": torch.tensor([self.image_id(index)]),
            "area": areas,
            "iscrowd": is_crowd,
            "orig_size": torch.tensor(self._size(index)),
            "size": torch.tensor(size),
        }
        if self.letterbox is not None:
            target["canvas"] = torch.tensor(canvas)
        return target if masks is None else {**target, "masks": masks}

    def _masks(
        self, index: int, rows: np.ndarray, size: tuple[int, int], draw_one: Callable[[bytes], np.ndarray]
    ) -> Tensor | None:
        """Draw the masks (n, h, w) of objects, one at a time; None where no masks were asked for."""
        if not self.with_masks:
            return None
        masks = torch.zeros(len(rows), *size, dtype=torch.bool)
        for mask, row in zip(masks, rows):
            try:
                mask.copy_(torch.from_numpy(draw_one(self._annotations.segmentations[row])))
            except ValueError as error:
                raise InputError(f"{self._annotations.source}: an object on image id {self.image_id(index)} has a bad "
                                 f"segmentation: {error}; correct the file, or export the data set again") from None
        return masks

    def _read(self, index: int, min_size: tuple[int, int] | None = None) -> Tensor:
        return read_image(self.image_path(index), annotated_size=self._size(index), min_size=min_size,
                          file=self._annotations.image_file(index), exif=self.exif, white_level=self.white_level,
                          max_pixels=self.max_pixels)

    def _rows(self, index: int) -> np.ndarray:
        return np.arange(self._annotations.offsets[index], self._annotations.offsets[index + 1])

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self._annotations.image_sizes[index].tolist()
        return height, width

    def _fractions(self, index: int, rows: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) xyxy as float64 fractions of their picture."""
        height, width = self._size(index)
        return self._annotations.boxes[rows] / np.array([width, height, width, height], dtype=np.float64)


def _shown_at(view: View, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (h, w) that the whole picture has where the view has `size`."""
    width, height = view.extent
    size = view.size_before_turn(size)
    return math.ceil(size[0] / height), math.ceil(size[1] / width)


def _show(pixels: Tensor, view: View, size: tuple[int, int]) -> Tensor:
    """Cut the view out of a picture (3, h, w) uint8, resize it to (H, W), turn and mirror it."""
    top, left, bottom, right = view.pixels(*pixels.shape[-2:])
    shown = resize(pixels[:, top:bottom, left:right], view.size_before_turn(size))
    if view.transpose:
        shown = shown.mT
    mirrored = [dim for dim, flip in ((1, view.vflip), (2, view.hflip)) if flip]
    return shown.flip(mirrored) if mirrored else shown
