"""Where each data set format keeps its splits, and how a format is recognised.

A new format is one more entry of `FORMATS`: a function that finds the splits of a folder, and a reader that returns a `RawSplit`.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco import read_coco
from rfdetr.data.file_names import match_names
from rfdetr.data.findings import Findings
from rfdetr.data.objects365 import find_objects365, read_objects365
from rfdetr.data.shards import SPLITS, find_shards, is_address, list_folder, read_shards
from rfdetr.data.yolo import find_yolo, read_yolo
from rfdetr.errors import InputError

COCO_NAMES = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid"), "test": ("test2017", "test")}
ROBOFLOW_NAMES = {"train": "train", "val": "valid", "test": "test"}
VAL_FRACTION = 0.1
ROBOFLOW_FILE = "_annotations.coco.json"


Paths = Mapping[str, Mapping[str, str]]


class Files(NamedTuple):
    """What makes up one split in COCO's formats."""

    annotations: Path
    images: Path  # folder


class Format(NamedTuple):
    """How one format is found and read."""

    find: Callable[..., dict[str, Any]]  # folder (or address) -> its splits; what a split is, only `read` needs to know
    read: Callable[..., RawSplit]  # (that, with_masks=, findings=)
    folders: Callable[[Any], Iterable[Path]]  # a split -> where its images may lie, beside the folder itself
    looks_like: str  # for messages


def _find_coco(folder: Path) -> dict[str, Files]:
    found = {}
    for split, names in COCO_NAMES.items():
        for name in names:
            annotations = folder / "annotations" / f"instances_{name}.json"
            if annotations.is_file():
                images = folder / "images" / name
                found[split] = Files(annotations, images if images.is_dir() else folder / name)
                break
    return found


def _find_roboflow(folder: Path) -> dict[str, Files]:
    files = {split: Files(folder / name / ROBOFLOW_FILE, folder / name) for split, name in ROBOFLOW_NAMES.items()}
    return {split: file for split, file in files.items() if file.annotations.is_file()}


def _read_coco(files: Files, *, with_masks: bool, findings: Findings) -> RawSplit:
    if not files.images.is_dir():
        raise InputError(f"{files.images}: there is no such folder; the images of {files.annotations} must be in it")
    return read_coco(files.annotations, files.images, with_masks=with_masks, findings=findings)


def _image_folders(files: Files) -> tuple[Path]:
    return (files.images,)


FORMATS = {
    "coco": Format(_find_coco, _read_coco, _image_folders,
                   "annotations/instances_train2017.json and train2017/, the same with val2017"),
    "roboflow": Format(_find_roboflow, _read_coco, _image_folders,
                       f"train/{ROBOFLOW_FILE}, valid/{ROBOFLOW_FILE}, images beside them"),
    "yolo": Format(find_yolo, read_yolo, lambda split: (*split.places, *split.sources),
                   "data.yaml with names and the paths of train, val and test"),
    "objects365": Format(find_objects365, read_objects365, lambda split: split.images,
                         "zhiyuan_objv2_train.json and train/patch0/, the same with val"),
    "shards": Format(find_shards, read_shards, lambda split: (),
                     "train-000000.tar, ... and train.json, the same with val (tools/pack_shards.py)"),
}


def detect_format(dataset_dir: str | Path, format: str = "auto") -> str:
    """Return the format of a data set's folder; "auto" looks at what is in it.

    Raises:
        InputError: there is no such folder, or nothing in it that a format could be known by.
    """
    folder = _folder(dataset_dir)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"data.format: {format!r} is unknown; it must be auto or one of {', '.join(FORMATS)}")
    if is_address(dataset_dir):
        if format not in ("auto", "shards"):
            raise InputError(f"{folder}: only shards are read from an address, not data.format {format!r}; "
                             "copy the data set to a disk, or pack it with tools/pack_shards.py")
        format = "shards"
    elif not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: {what}; data.dataset_dir must be the folder of the data set")
    names = [format] if format != "auto" else list(FORMATS)
    found = [name for name in names if FORMATS[name].find(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{folder}: holds data of more than one format ({', '.join(found)}); choose one with data.format")
    wanted = "; or ".join(f"{name}: {FORMATS[name].looks_like}" for name in names)
    content = sorted(list_folder(folder) if is_address(dataset_dir) else
                     [entry.name + "/" * entry.is_dir() for entry in folder.iterdir()])
    raise InputError(f"{folder}: no data set found. Expected {wanted}. The folder holds: {', '.join(content[:10]) or 'nothing'}")


def available_splits(dataset_dir: str | Path, format: str = "auto", paths: Paths | None = None) -> tuple[str, ...]:
    """Return which of train, val and test a data set has; the arguments are those of `read_split`."""
    return tuple(_find_splits(dataset_dir, format, paths)[1])


def read_split(
    dataset_dir: str | Path,
    split: str,
    *,
    format: str = "auto",
    paths: Paths | None = None,
    with_masks: bool = False,
    val_fraction: float = VAL_FRACTION,
    allow_outside: bool = False,
    findings: Findings | None = None,
) -> RawSplit:
    """Read one split of a data set.

    Args:
        paths: where a COCO data set of a layout of one's own has its splits, {split: {"annotations": file, "images": folder}},
            relative to `dataset_dir`.
        val_fraction: share of the images that are the val split where one file holds all, undivided (layouts.divide).
        allow_outside: the annotations may name image files outside of the data set's folders.
        findings: gets what is wrong with single entries, which are left out; without it they are refused, all in one message.

    Raises:
        InputError: there is no such split (another one is never taken for it), or its files are wrong.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}")
    found_format, found = _find_splits(dataset_dir, format, paths)
    if split not in found:
        raise InputError(f"{dataset_dir}: has no {split} split (found: {', '.join(found)}); expected {found_format.looks_like}")
    collected = Findings() if findings is None else findings
    collected.split = split
    raw = found_format.read(found[split], with_masks=with_masks, findings=collected)
    roots = [_folder(dataset_dir), *(folder for one in found.values() for folder in found_format.folders(one))]
    raw = match_names(raw, roots, collected, allow_outside=allow_outside)
    if findings is None:
        collected.refuse_errors(raw.source)
    return raw


def _find_splits(dataset_dir: str | Path, format: str, paths: Paths | None) -> tuple[Format, dict[str, Any]]:
    if paths is None:
        found_format = FORMATS[detect_format(dataset_dir, format)]
        return found_format, found_format.find(_folder(dataset_dir))
    if format not in ("auto", "coco") or is_address(dataset_dir):
        raise InputError(f"data.splits: names files of a COCO data set on disk, not of format {format!r} at {dataset_dir}; "
                         "leave one of data.splits and data.format out")
    return FORMATS["coco"], {split: _given_files(Path(dataset_dir), split, given) for split, given in paths.items()}


def _given_files(folder: Path, split: str, given: Mapping[str, str]) -> Files:
    if split not in SPLITS or not isinstance(given, Mapping) or set(given) != set(Files._fields):
        raise InputError(f"data.splits: {split}: {given} is not possible; it must give for {', '.join(SPLITS)} (or some of them) "
                         "the two paths annotations (a JSON file) and images (a folder)")
    return Files(folder / given["annotations"], folder / given["images"])


def _folder(dataset_dir: str | Path) -> Path | str:
    """Return the path of a data set; an address stays a string, since a path would lose one of its slashes."""
    return str(dataset_dir).rstrip("/") if is_address(dataset_dir) else Path(dataset_dir)
