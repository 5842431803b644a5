"""A corrected copy of a data set's annotations, as COCO JSON whatever their format is; the originals stay untouched.

What it does with each kind of finding is written in that kind. Repairs were made by the readers and only need to be written; what
cannot be repaired is left out; whatever takes a look at the picture stays as it is. Of an entry, the file has what training and
evaluation use; annotation ids are new.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rfdetr.data.annotations import cut_boxes
from rfdetr.data.coco_writer import split_content
from rfdetr.datacheck.boxes import upright
from rfdetr.datacheck.dataset_check import DatasetCheck
from rfdetr.datacheck.kinds import all_kinds
from rfdetr.datacheck.split_check import SplitCheck
from rfdetr.errors import InputError

SPLITS_FILE = "splits.yaml"


def write_fixed(check: DatasetCheck, folder: Path) -> Path:
    """Write ``train.json`` and so on, and a configuration file with their paths, which is returned.

    Raises:
        InputError: the folder holds something, the data set is one of shards, or nothing would be left of a split.
    """
    check_target(folder)
    for found in check.findings:
        if found.name == "unreadable_split":
            raise InputError(f"--fix: the {found.split} split cannot be read ({found.examples[0]})")
    if any(split.raw.open_image is not None for split in check.splits.values()):
        raise InputError(f"--fix: {check.dataset_dir} has pictures inside of other files; mend the data set that they were "
                         "made of, or write them out by rfdetr convert")
    fixed = {name: fixed_content(split) for name, split in check.splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, content in fixed.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        images = check.splits[name].raw.image_root
        paths[name] = {"annotations": f"{name}.json", "images": str(Path(images).resolve())}
    content = {"data": {"dataset_dir": str(folder.resolve()), "format": "coco", "splits": paths}}
    (folder / SPLITS_FILE).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / SPLITS_FILE


def check_target(folder: Path) -> None:
    """Refuse a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--fix {folder}: is there already and not an empty folder; name a new one")


def fixed_content(split: SplitCheck) -> dict[str, Any]:
    """Return the corrected annotations of a split as the content of a COCO file."""
    raw = replace(split.raw, boxes=upright(split.raw.boxes))
    boxes, usable = cut_boxes(raw)
    images, objects = _kept(split, usable)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    is_cut = (boxes != raw.boxes).any(axis=1)
    areas = np.where(is_cut, np.fmin(raw.areas, box_areas), np.where(np.isnan(raw.areas), box_areas, raw.areas))
    fixed = replace(raw, boxes=boxes, areas=areas)
    return split_content(fixed, np.flatnonzero(images).tolist(), np.flatnonzero(objects).tolist())


def _kept(split: SplitCheck, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell which images (N,) and objects (M,) bool are left without the findings that are dropped."""
    kinds = all_kinds()
    images, objects = np.ones(len(split.raw.image_ids), dtype=bool), usable.copy()
    for kept, marked in ((images, split.marked_images), (objects, split.marked_objects)):
        for name, places in marked.items():
            if kinds[name].fix == "drops":
                kept[places] = False
    objects &= images[split.raw.image_indices]
    for what, kept in (("images", images), ("boxes", objects)):
        if len(kept) and not kept.any():
            causes = [found.brief() for found in split.findings if found.split == split.name
                      and kinds[found.name].fix == "drops"]
            raise InputError(f"--fix: none of the {len(kept)} {what} of the {split.name} split would be left; mend it by hand: "
                             f"{'; '.join(causes[:3])}")
    return images, objects
