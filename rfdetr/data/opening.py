"""Open a split of a data set by its folder, with the label map that belongs to it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.data.annotations import RawSplit, clean, describe
from rfdetr.data.cache import read_files
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.findings import Findings
from rfdetr.data.formats import VAL_FRACTION, Paths, available_splits, detect_format, read_split
from rfdetr.data.label_map import LabelMap
from rfdetr.data.recipes import RECIPES, Recipe, find_recipe
from rfdetr.data.transforms import make_transforms
from rfdetr.errors import InputError

logger = logging.getLogger(__name__)


def open_dataset(
    dataset_dir: str | Path,
    split: str,
    *,
    image_size: tuple[int, int],
    training: bool,
    format: str = "auto",
    paths: Paths | None = None,
    label_map: LabelMap | str | None = None,
    with_masks: bool = False,
    augment: str | Sequence[Callable | dict] = "default",
    on_bad_image: str = "fail",
    exif: str = "apply",
    cache: str = "none",
    val_fraction: float = VAL_FRACTION,
    allow_outside: bool = False,
    raw: RawSplit | None = None,
) -> DetectionDataset:
    """Read one split and say in one log line what it holds.

    Args:
        split: "train", "val" or "test"; one that does not exist is an error, never replaced by another.
        image_size: (H, W) of the samples, unless a sample's key says otherwise.
        paths, val_fraction, allow_outside: see `formats.read_split`.
        training: leave crowd regions out and apply `augment`; otherwise crowds stay, marked as such.
        label_map: that of the training split or of a checkpoint; None makes it from the train split; "coco" keeps category
            ids as labels.
        augment: name of a recipe, or a list of torchvision v2 transforms (transforms.make_transforms).
        on_bad_image, exif: see `DetectionDataset`.
        cache: "ram" keeps the files of all images in memory.
        raw: the split as it was read already, by somebody who has reported what is wrong in it.
    """
    reading = {"format": format, "paths": paths, "val_fraction": val_fraction, "allow_outside": allow_outside}
    if raw is None:
        findings = Findings()
        raw = read_split(dataset_dir, split, with_masks=with_masks, findings=findings, **reading)
        findings.refuse_errors(raw.source, but=("no_image_size",) if on_bad_image == "skip" else ())
    if not isinstance(label_map, LabelMap):
        train = raw if split == "train" or label_map == "coco" else _read_train(dataset_dir, split, **reading)
        label_map = _make_label_map(train, label_map)
    _check_names(raw, label_map)
    annotations, report = clean(raw, label_map, drop_crowds=training)
    if with_masks:
        report["without_mask"] = sum(1 for row in range(len(annotations.boxes)) if not annotations.segmentations[row])
    _check_content(raw, report, split, training, with_masks)
    recipe = _augmentation(augment) if training else RECIPES["none"]
    is_dirty = any(report.get(key) for key in ("unmapped", "not_finite", "zero_size", "without_mask"))
    log = logger.warning if is_dirty else logger.info
    found_format = detect_format(dataset_dir, format) if paths is None else "coco"
    log("%s split: %s (%s, format %s)", split, describe(report), raw.source, found_format)
    if cache == "ram":
        annotations = replace(annotations, file_contents=read_files(annotations))
    return DetectionDataset(annotations, label_map, split=split, image_size=image_size, augment=recipe, report=report,
                         on_bad_image=on_bad_image, exif=exif)


def read_label_map(
    dataset_dir: str | Path, *, format: str = "auto", paths: Paths | None = None, label_map: str | None = None, **reading: Any
) -> LabelMap:
    """Make the label map of a data set from its train split; `reading` has further arguments of `formats.read_split`."""
    return _make_label_map(_read_train(dataset_dir, "train", format, paths, **reading), label_map)


def _read_train(dataset_dir: str | Path, split: str, format: str, paths: Paths | None, **reading: Any) -> RawSplit:
    if "train" not in available_splits(dataset_dir, format, paths):
        raise InputError(f"{dataset_dir}: the label map of the {split} split is made from the train split, and there is none; "
                         "give the label map of the checkpoint")
    return read_split(dataset_dir, "train", format=format, paths=paths, **reading)


def _make_label_map(train: RawSplit, kind: str | None) -> LabelMap:
    if kind not in (None, "coco"):
        raise InputError(f"data.label_map: {kind!r} is unknown; it must be coco (category ids are the labels) or left out")
    return LabelMap.from_categories(train.categories, np.unique(train.category_ids).tolist(), raw=kind == "coco")


def _check_names(raw: RawSplit, label_map: LabelMap) -> None:
    """Refuse a split that uses the map's category ids for other classes; a mere change of a name is a warning."""
    used = set(np.unique(raw.category_ids).tolist())
    names = dict(zip(label_map.category_ids, label_map.category_names))
    shared = [category for category in raw.categories if category.id in used & names.keys()]
    renamed = [c for c in shared if names[c.id] not in (c.name, f"{c.name} (id {c.id})")]
    for category in renamed:
        if category.name in names.values():
            raise InputError(f"{raw.source}: category id {category.id} is {category.name!r} here, "
                             f"but {names[category.id]!r} in the label map, which has that name for another id; "
                             "use the same category ids in all splits")
    listed = ", ".join(f"{category.id}: {category.name!r} for {names[category.id]!r}" for category in renamed[:8])
    if len(shared) > 1 and all(category.name.casefold() != names[category.id].casefold() for category in shared):
        raise InputError(f"{raw.source}: these are other classes than those of the label map ({listed}); use the data that it "
                         "was made for, or correct the names")
    if renamed:
        logger.warning("%s: some categories have other names than in the label map (%s); the ids decide", raw.source, listed)
    unknown = [category for category in raw.categories if category.id in used and category.id not in names]
    if unknown:
        listed = ", ".join(f"{category.name!r} (id {category.id})" for category in unknown[:8])
        logger.warning("%s: boxes of categories that the label map does not have are left out: %s", raw.source, listed)


def _check_content(raw: RawSplit, report: dict[str, int], split: str, training: bool, with_masks: bool) -> None:
    if training and not report["boxes"]:
        raise InputError(f"{raw.source}: the {split} split has no boxes to learn from ({describe(report)})")
    if not report["boxes"]:
        logger.warning("%s: the %s split has no boxes, so nothing can be measured on it", raw.source, split)
    if with_masks and report["boxes"] and report["without_mask"] == report["boxes"]:
        raise InputError(f"{raw.source}: a segmentation model needs masks, but no annotation has a segmentation; "
                         "use a detection model, or export the data set with polygons")


def _augmentation(augment: str | Sequence[Callable | dict]) -> Recipe | Callable:
    if not isinstance(augment, str):
        return make_transforms(augment)
    recipe = find_recipe(augment)
    logger.info("augmentation: recipe %s, version %d (%s)", recipe.name, recipe.version, recipe.purpose)
    return recipe
