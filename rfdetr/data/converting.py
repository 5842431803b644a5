"""Write a data set of any format that is read as one of COCO's or YOLO's layout.

COCO's has all that is read: boxes, classes with their groups, areas, crowds, masks. What YOLO's label files cannot say is
counted, so that nobody finds out later. Numbers are written so that they are read as the same, to 1e-6 of a pixel and better.
Attributes, key points and what else an entry may have are not read, so they are not written.
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import yaml

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco_writer import split_content
from rfdetr.data.formats import Paths, available_splits, detect_format, read_split
from rfdetr.data.images import IMAGE_SUFFIXES, read_size
from rfdetr.data.label_map import without_groups
from rfdetr.data.outlines import bridged, outline
from rfdetr.data.packing import read_picture
from rfdetr.data.segmentations import decode, draw, encode
from rfdetr.data.yolo import label_folder, to_pixels
from rfdetr.errors import InputError
from rfdetr.files import new_folder

EQUAL = 1e-3  # pixels, or share of an area, that are no difference
NOTES = {
    "crowds": "crowd regions are left out, since they would become objects",
    "areas": "objects have an area other than their line's, by which evaluation sorts small, medium and large",
    "joined": "masks of several parts or with holes are one polygon each, whose parts are joined by bridges without width",
    "traced": "masks of run lengths are the polygons along the edges of their pixels",
    "changed": "masks are not the same pixel for pixel",
    "boxes": "boxes are not those around their polygons, which is what a line with a polygon says",
    "groups": "classes lose the group that they belong to (supercategory)",
    "renamed": "pictures get another name, since two would share a label file",
}


@dataclass
class Converted:
    """What was written of a split, and what the format cannot say."""

    images: int = 0
    objects: int = 0
    losses: Counter = field(default_factory=Counter)  # of `NOTES`
    farthest: float = 0.0  # pixels that a side of a box moved, where a polygon decides

    def notes(self) -> list[str]:
        """Say in a sentence each what the format could not keep."""
        return [f"{self.losses[name]} {text}{f' (up to {self.farthest:.3g} px)' if name == 'boxes' else ''}"
                for name, text in NOTES.items() if self.losses[name]]


def convert_dataset(
    dataset_dir: str | Path, output: Path, *, to: Literal["coco", "yolo"], format: str = "auto", paths: Paths | None = None,
    pictures: Literal["link", "copy"] = "link", with_masks: bool = True, **reading: Any,
) -> dict[str, Converted]:
    """Write all splits of a data set into a new folder, which appears when it is complete.

    Args:
        paths, reading: as `read_split` takes them.
        pictures: symbolic links to the pictures where they lie, or copies. Those inside of other files are always written out.
        with_masks: False writes boxes alone.

    Raises:
        InputError: the data set has faults, as in training; or the folder holds something.
    """
    format = detect_format(dataset_dir, format) if paths is None else format
    raws = {split: read_split(dataset_dir, split, format=format, paths=paths, with_masks=with_masks, **reading)
            for split in available_splits(dataset_dir, format, paths)}
    done = {split: Converted(len(raw.image_ids), len(raw.boxes)) for split, raw in raws.items()}
    numbers, class_names = _numbers(raws)
    has_masks = any(any(raw.segmentations or ()) for raw in raws.values())
    with new_folder(output) as folder:
        for split, raw in raws.items():
            names = _target_names(raw, done[split], unique_stems=to == "yolo")
            _place_pictures(raw, folder / "images" / split, names, pictures)
            if to == "coco":
                _write_coco(raw, folder, split, names)
            else:
                _write_yolo(raw, folder, split, names, numbers[split], done[split])
        if to == "yolo":
            _write_data_file(folder, list(raws), class_names, with_masks=has_masks)
    return done


def _target_names(raw: RawSplit, done: Converted, *, unique_stems: bool) -> list[str]:
    """Return the pictures' names below a folder of the split, without the folders that all have in front."""
    plain = {name: [part for part in PurePath(name).parts if part not in (PurePath(name).anchor, "..")]
             for name in raw.file_names}
    common = os.path.commonprefix([parts[:-1] for parts in plain.values()])
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in raw.file_names:
        if name in chosen:
            continue
        path, number = Path(*plain[name][len(common):]), 1
        stem, key = path.stem, str(path.with_suffix("") if unique_stems else path)
        while key in taken:
            number += 1
            path = path.with_name(f"{stem}-{number}{path.suffix}")
            key = str(path.with_suffix("") if unique_stems else path)
        taken.add(key)
        chosen[name] = path.as_posix()
        done.losses["renamed"] += number > 1
    return [chosen[name] for name in raw.file_names]


def _place_pictures(raw: RawSplit, folder: Path, names: Sequence[str], pictures: str) -> None:
    folder.mkdir(parents=True)
    for name, target in dict(zip(raw.file_names, names)).items():
        path, source = folder / target, Path(raw.image_root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if raw.open_image is not None:
            path.write_bytes(read_picture(raw, name))
        elif not source.is_file():
            raise InputError(f"{source}: there is no such image file; put it there, or take it out of the annotations")
        elif pictures == "copy":
            shutil.copy(source, path)
        else:
            path.symlink_to(source.resolve())


def _write_coco(raw: RawSplit, folder: Path, split: str, names: Sequence[str]) -> None:
    content = split_content(raw)
    for entry, name in zip(content["images"], names):
        entry["file_name"] = name
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_yolo(raw: RawSplit, folder: Path, split: str, names: Sequence[str], numbers: dict[int, int], done: Converted) -> None:
    """Write label files, empty ones too; a picture that is listed again with the same objects is in a list as often."""
    rows_of = raw.rows_by_image()
    done.losses["groups"] = sum(category.supercategory not in (None, "", "none", category.name) for category in raw.categories)
    listings: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        listings[name].append(index)
    listed = []
    for name, indices in listings.items():
        size, lines = _checked_size(raw, indices[0]), []
        for index in indices:
            rows = rows_of[index][~raw.is_crowd[rows_of[index]]].tolist()
            done.losses["crowds"] += len(rows_of[index]) - len(rows)
            values = [_line(raw, row, size, done) for row in rows]
            lines.append([" ".join([str(numbers[int(raw.category_ids[row])]), *(repr(part) for part in value)])
                          for row, value in zip(rows, values)])
        is_same = all(sorted(one) == sorted(lines[0]) for one in lines)
        lines = lines[0] if is_same else [line for one in lines for line in one]
        listed += [name] * (len(indices) if is_same else 1)
        picture = folder / "images" / split / name
        path = label_folder(picture.parent) / f"{picture.stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    done.objects -= done.losses["crowds"]
    if len(listings) < len(listed):
        (folder / f"{split}.txt").write_text("".join(f"images/{split}/{name}\n" for name in listed), encoding="utf-8")


def _checked_size(raw: RawSplit, index: int) -> tuple[int, int]:
    """Return the annotated (h, w) of a picture, by which readers of YOLO will not multiply if the file has another.

    Raises:
        InputError: it has; or no reader of YOLO takes its name for a picture's.
    """
    name, size = raw.file_names[index], tuple(raw.image_sizes[index].tolist())
    if not name.lower().endswith(IMAGE_SUFFIXES):
        raise InputError(f"{raw.source}: {name!r} has none of the endings {', '.join(IMAGE_SUFFIXES)}; rename the file")
    found = size if raw.open_image is not None else read_size(Path(raw.image_root, name))
    if found != size:
        raise InputError(f"{Path(raw.image_root, name)}: is annotated as {size[1]} x {size[0]}, but shown as {found[1]} x "
                         f"{found[0]}, which YOLO's fractions refer to; correct width and height, or store it upright")
    return size


def _line(raw: RawSplit, row: int, size: tuple[int, int], done: Converted) -> list[float]:
    """Return the fractions that a line has after the class: of a polygon, or of a box's centre and sides."""
    scale, box = np.array(size[::-1], dtype=np.float64), raw.boxes[row].reshape(2, 2)
    polygon = None if raw.segmentations is None else _polygon(raw.segmentations[row], size, done.losses)
    if polygon is None:
        area, values = float((box[1] - box[0]).prod()), [box.mean(axis=0) / scale, (box[1] - box[0]) / scale]
    else:
        x, y = polygon.T
        area, values = abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2, [(polygon / scale).ravel()]
        again = encode([to_pixels(polygon / scale, scale)])
        is_changed = again != raw.segmentations[row] and (draw(again, *size) != draw(raw.segmentations[row], *size)).any()
        done.losses["changed"] += bool(is_changed)
        off = float(np.abs(np.stack([polygon.min(axis=0), polygon.max(axis=0)]) - box).max())
        done.losses["boxes"] += off > EQUAL
        done.farthest = max(done.farthest, off)
    done.losses["areas"] += abs(raw.areas[row] - area) > EQUAL * max(1.0, area)  # False for NaN
    return np.concatenate(values).tolist()


def _polygon(encoded: bytes, size: tuple[int, int], losses: Counter) -> np.ndarray | None:
    """Return one polygon (n, 2) for a mask, None where it is none."""
    segmentation = decode(encoded)
    if not segmentation:
        return None
    is_runs = isinstance(segmentation, dict)
    if not is_runs and len(segmentation) == 1:
        return np.array(segmentation[0]).reshape(-1, 2)
    losses["traced" if is_runs else "joined"] += 1
    whole = draw(encoded, *size)
    joined = None if is_runs else bridged([np.array(part).reshape(-1, 2) for part in segmentation])
    if joined is None or (draw(encode([joined.ravel()]), *size) != whole).any():  # parts that overlap
        joined = outline(whole)
    return joined if len(joined) else None


def _numbers(raws: dict[str, RawSplit]) -> tuple[dict[str, dict[int, int]], list[str]]:
    """Return the number that YOLO gives to each category id of each split, and the names in this order.

    Classes of one name are one in all splits, whatever their ids are there. What only groups others is no class, as in training.
    """
    found = {category.name for raw in raws.values() for category in raw.categories
             if category.id in set(raw.category_ids.tolist())}
    numbers: dict[str, dict[int, int]] = {}
    known: dict[tuple[str, int], int] = {}
    for split, raw in raws.items():
        times: Counter[str] = Counter()
        numbers[split] = {}
        annotated = [category.id for category in raw.categories if category.name in found]
        for category in sorted(without_groups(raw.categories, annotated)):
            times[category.name] += 1  # some data sets have two classes of one name
            numbers[split][category.id] = known.setdefault((category.name, times[category.name]), len(known))
    return numbers, [name for name, _ in known]


def _write_data_file(folder: Path, splits: Sequence[str], names: list[str], *, with_masks: bool) -> None:
    paths = {split: f"{split}.txt" if (folder / f"{split}.txt").is_file() else f"images/{split}" for split in splits}
    content = {**paths, **({"task": "segment"} if with_masks else {}), "names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
