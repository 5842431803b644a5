"""Where each data set format keeps its splits, and how a format is recognised.

A new format is one more entry of `FORMATS`: a function that finds the splits of a folder, and a reader that returns a `RawSplit`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco import read_coco
from rfdetr.errors import InputError

SPLITS = ("train", "val", "test")
COCO_NAMES = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid"), "test": ("test2017", "test")}
ROBOFLOW_NAMES = {"train": "train", "val": "valid", "test": "test"}
ROBOFLOW_FILE = "_annotations.coco.json"


class Files(NamedTuple):
    """What makes up one split."""

    annotations: Path
    images: Path  # folder


class Format(NamedTuple):
    """How one format is found and read."""

    find: Callable[[Path], dict[str, Files]]  # folder of the data set -> its splits
    read: Callable[..., RawSplit]  # (annotations, images, with_masks=)
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


FORMATS = {
    "coco": Format(_find_coco, read_coco, "annotations/instances_train2017.json and train2017/, the same with val2017"),
    "roboflow": Format(_find_roboflow, read_coco, f"train/{ROBOFLOW_FILE}, valid/{ROBOFLOW_FILE}, images beside them"),
}


def detect_format(dataset_dir: str | Path, format: str = "auto") -> str:
    """Return the format of a data set's folder; "auto" looks at what is in it.

    Raises:
        InputError: there is no such folder, or nothing in it that a format could be known by.
    """
    folder = Path(dataset_dir)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"data.format: {format!r} is unknown; it must be auto or one of {', '.join(FORMATS)}")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: {what}; data.dataset_dir must be the folder of the data set")
    names = [format] if format != "auto" else list(FORMATS)
    found = [name for name in names if FORMATS[name].find(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{folder}: holds data of more than one format ({', '.join(found)}); choose one with data.format")
    wanted = "; or ".join(f"{name}: {FORMATS[name].looks_like}" for name in names)
    content = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    raise InputError(f"{folder}: no data set found. Expected {wanted}. The folder holds: {', '.join(content[:10]) or 'nothing'}")


def available_splits(dataset_dir: str | Path, format: str = "auto") -> tuple[str, ...]:
    """Return which of train, val and test a data set has."""
    return tuple(FORMATS[detect_format(dataset_dir, format)].find(Path(dataset_dir)))


def read_split(dataset_dir: str | Path, split: str, *, format: str = "auto", with_masks: bool = False) -> RawSplit:
    """Read one split of a data set.

    Raises:
        InputError: there is no such split (another one is never taken for it), or its files are wrong.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}")
    found_format = FORMATS[detect_format(dataset_dir, format)]
    found = found_format.find(Path(dataset_dir))
    if split not in found:
        raise InputError(f"{dataset_dir}: has no {split} split (found: {', '.join(found)}); expected {found_format.looks_like}")
    files = found[split]
    if not files.images.is_dir():
        raise InputError(f"{files.images}: there is no such folder; the images of {files.annotations} must be in it")
    return found_format.read(files.annotations, files.images, with_masks=with_masks)
