"""Open a split of a data set by its folder, with the label map that belongs to it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.data.annotations import RawSplit, clean, describe, is_dirty
from rfdetr.data.cache import read_files
from rfdetr.data.class_matching import ClassMatch, match_classes
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.findings import Findings
from rfdetr.data.formats import VAL_FRACTION, Paths, available_splits, detect_format, read_split
from rfdetr.data.images import MAX_PIXELS, allow_pixels
from rfdetr.data.label_map import LabelMap
from rfdetr.data.recipes import RECIPES, Recipe, find_recipe
from rfdetr.data.selection import select_classes, select_images
from rfdetr.data.transforms import make_transforms
from rfdetr.data.white_level import find_white_level
from rfdetr.errors import InputError

logger = logging.getLogger(__name__)


def open_dataset(
    dataset_dir: str | Path,
    split: str,
    *,
    image_size: tuple[int, int],
    training: bool,
    format: str = "auto", paths: Paths | None = None, val_fraction: float = VAL_FRACTION, allow_outside: bool = False,
    label_map: LabelMap | str | None = None,
    with_masks: bool = False,
    augment: str | Sequence[Callable | dict] = "default",
    on_bad_image: str = "fail", white_level: int | None = None, max_pixels: int = MAX_PIXELS,
    cache: str = "none",
    classes: Sequence[str] | None = None, single_class: bool = False, fraction: float = 1.0,
    raw: RawSplit | None = None,
    **options: Any,
) -> DetectionDataset:
    """Read one split and say in one log line what it holds.

    Args:
        split: "train", "val" or "test"; one that does not exist is an error, never replaced by another.
        image_size: (H, W) of the samples, unless a sample's key says otherwise.
        paths, val_fraction, allow_outside: see `formats.read_split`.
        training: leave crowd regions out and apply `augment`; otherwise crowds stay, marked as such.
        label_map: that of the training split or of a checkpoint, whose classes are found by name (`match_classes`); None makes
            it from the train split; "coco" keeps category ids as labels.
        augment: name of a recipe, or a list of torchvision v2 transforms (transforms.make_transforms).
        on_bad_image, max_pixels: see `DetectionDataset`, whose `exif` and `letterbox` are among the options.
        white_level: see `read_image`; None: decided by the train split's pictures, for all splits (white_level.py).
        cache: "ram" keeps the files of all images in memory.
        classes, single_class, fraction: see `select_classes` and, for training, `select_images`.
        raw: the split as it was read already, by somebody who has reported what is wrong in it.
    """
    allow_pixels(max_pixels)
    reading = {"format": format, "paths": paths, "val_fraction": val_fraction, "allow_outside": allow_outside}
    select = partial(select_classes, wanted=classes, as_one=single_class)
    if raw is None:
        raw = _read_strictly(dataset_dir, split, on_bad_image, with_masks=with_masks, **reading)
    raw = whole = select(raw, is_train=split == "train" and not isinstance(label_map, LabelMap))
    if not isinstance(label_map, LabelMap):
        is_source = split == "train" or label_map == "coco"
        train = raw if is_source else select(_read_train(dataset_dir, split, **reading), is_train=True)
        label_map = _make_label_map(train, label_map)
    if training and fraction < 1:
        raw = select_images(raw, fraction)
    annotations, report = clean(raw, _match(raw, label_map), training=training)
    if with_masks:
        report["without_mask"] = sum(1 for row in range(len(annotations.boxes)) if not annotations.segmentations[row])
    _check_content(raw, report, split, training, with_masks)
    recipe = _augmentation(augment) if training else RECIPES["none"]
    found_format = detect_format(dataset_dir, format) if paths is None else "coco"
    logger.log(logging.WARNING if is_dirty(report) else logging.INFO, "%s split: %s (%s, format %s)", split, describe(report),
               raw.source, found_format)
    if cache == "ram":
        annotations = replace(annotations, file_contents=read_files(annotations))
    if white_level is None:
        find_train = None if split == "train" else partial(_find_train, dataset_dir, **reading)
        white_level = find_white_level(whole, find_train, max_pixels=max_pixels)
    return DetectionDataset(annotations, label_map, split=split, image_size=image_size, augment=recipe, report=report,
                            on_bad_image=on_bad_image, white_level=white_level, max_pixels=max_pixels, **options)


def _read_strictly(dataset_dir: str | Path, split: str, on_bad_image: str, **reading: Any) -> RawSplit:
    findings = Findings()
    raw = read_split(dataset_dir, split, findings=findings, **reading)
    findings.refuse_errors(raw.source, but=("no_image_size",) if on_bad_image == "skip" else ())
    return raw


def _find_train(dataset_dir: str | Path, **reading: Any) -> RawSplit | None:
    if "train" not in available_splits(dataset_dir, reading["format"], reading["paths"]):
        return None
    return read_split(dataset_dir, "train", **reading)


def _read_train(dataset_dir: str | Path, split: str, **reading: Any) -> RawSplit:
    train = _find_train(dataset_dir, **reading)
    if train is None:
        raise InputError(f"{dataset_dir}: the label map of the {split} split is made from the train split, and there is none; "
                         "give the label map of the checkpoint")
    return train


def _make_label_map(train: RawSplit, kind: str | None) -> LabelMap:
    if kind not in (None, "coco"):
        raise InputError(f"data.label_map: {kind!r} is unknown; it must be coco (category ids are the labels) or left out")
    return LabelMap.from_categories(train.categories, np.unique(train.category_ids).tolist(), raw=kind == "coco")


def _match(raw: RawSplit, label_map: LabelMap) -> ClassMatch:
    match = match_classes(raw.categories, np.unique(raw.category_ids).tolist(), label_map, source=raw.source)
    for level, text in match.remarks():
        logger.log(level, "%s: %s", raw.source, text)
    return match


def _check_content(raw: RawSplit, report: dict[str, int], split: str, training: bool, with_masks: bool) -> None:
    if training and not report["boxes"]:
        raise InputError(f"{raw.source}: the {split} split has no boxes to learn from ({describe(report)})")
    if report["boxes"] == report["crowds"]:
        logger.warning("%s: the %s split has no boxes%s, so nothing can be measured on it", raw.source, split,
                       " but crowd regions" if report["crowds"] else "")
    if with_masks and report["boxes"] and report["without_mask"] == report["boxes"]:
        raise InputError(f"{raw.source}: a segmentation model needs masks, but no annotation has a segmentation; "
                         "use a detection model, or export the data set with polygons")


def _augmentation(augment: str | Sequence[Callable | dict]) -> Recipe | Callable:
    if not isinstance(augment, str):
        return make_transforms(augment)
    recipe = find_recipe(augment)
    logger.info("augmentation: recipe %s, version %d (%s)", recipe.name, recipe.version, recipe.purpose)
    return recipe
