"""Read YOLO data sets: data.yaml, folders or lists of images, and a text file with the objects of each image.

The labels of `.../images/x.jpg` are in `.../labels/x.txt`, or else beside the image. Category ids are YOLO's class ids; image ids
count from 0 in the order of the file names. A picture that is listed several times is as many images of the train split, which is
how people make rare ones count more; other splits have it once. Coordinates refer to pictures as viewers show them, by their EXIF
orientation. Darknet's and CVAT's obj.data stands for a data.yaml (darknet.py); where it names a train split only, that is divided
(`layouts.divide`).
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.darknet import DARKNET_SUFFIX, darknet_file, without_data_folder
from rfdetr.data.file_names import KINDS as NAME_KINDS
from rfdetr.data.file_names import NearNames, files_in, pictures_below
from rfdetr.data.findings import Findings, Kind
from rfdetr.data.images import IMAGE_SUFFIXES, ImageError, read_size
from rfdetr.data.layouts import VAL_FRACTION, folders_below, split_of, val_names
from rfdetr.data.segmentations import encode_polygons
from rfdetr.data.yolo_labels import MAX_BYTES, LabelFile, join, parse_labels
from rfdetr.data.yolo_yaml import read_categories, read_data_file, read_line_form, read_paths
from rfdetr.errors import InputError

NAME_LISTS = ("obj.names", "classes.txt", "_darknet.labels", "labels.txt")  # of classes, a line each
DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
CHUNK = 4096  # images read at once, so that the text of all labels is never in memory
UNKNOWN_SIZE = (640, 640)  # of a picture whose header cannot be read

KINDS = {
    "split_path_moved": Kind("warning", "files", "paths of a split as another machine or system has them, found in the data set",
                             "look whether this is the folder that is meant; correct data.yaml", "repairs"),
    "split_path_missing": Kind("error", "files", "paths of a split that do not exist", "correct data.yaml"),
    "image_missing": Kind("error", "files", "listed images that do not exist", "correct the list, or put the images there",
                          "drops"),
    "listed_again": Kind("warning", "files", "lines and paths that list an image again, which is scored once",
                         "list each image of this split once"),
    "listed_again_for_training": Kind("info", "files", "lines and paths that list an image again, which is trained on again",
                                      "nothing to do if it is to count more"),
    "no_image_size": Kind("error", "files", "images whose size cannot be read",
                          "replace them; data.on_bad_image: skip does without them"),
    "no_labels": Kind("error", "files", "folders of images without a single label file",
                      "put the labels of images/x.jpg into labels/x.txt, or beside the image"),
    "background_image": Kind("info", "files", "images without a label file, taken as images without objects",
                             "nothing to do if they show no objects"),
    "label_shared": Kind("warning", "files", "label files that belong to several images of one name, such as x.jpg and x.png",
                         "keep one of the images, or rename them and give each its labels"),
    "label_without_image": Kind("warning", "files", "label files without an image", "add the images; these files are not used",
                                "drops"),
    "label_name_case": Kind("error", "files", "label files whose name differs from the image's in upper and lower case only",
                            "rename them, since on most systems they do not belong together", "drops"),
}


class YoloSplit(NamedTuple):
    """What data.yaml says of one split."""

    data_file: Path
    sources: tuple[Path, ...]  # folders of images, and text files that list images
    missing: tuple[str, ...]  # what points nowhere, with the places that were looked at
    moved: tuple[str, ...]  # what was found by the end of its path alone
    places: tuple[Path, ...]  # what relative paths may be relative to
    part: str = ""  # "train" or "val" of sources that hold both


@contextmanager
def _refusing() -> Iterator[None]:
    """Say which file or folder cannot be read."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its name and its permissions") from None


@_refusing()
def find_yolo(folder: Path) -> dict[str, YoloSplit]:
    """Return the splits of a folder with a data.yaml or an obj.data, or of that file itself.

    A path that does not exist stays, to be refused when it is read.
    """
    if folder.is_file():
        data_file, folder = folder, folder.parent
    else:
        data_file = next((folder / name for name in DATA_FILES if (folder / name).is_file()), None) or darknet_file(folder)
    content = {} if data_file is None else read_data_file(data_file)
    if "names" not in content and "nc" not in content:
        return {}
    named = {split: [key for key in keys if key in content] for split, keys in SPLIT_KEYS.items()}
    if any(named.values()):
        splits = {split: _locate(data_file, content, keys[0]) for split, keys in named.items() if keys}
        if data_file.suffix == DARKNET_SUFFIX and "val" not in splits and "train" in splits:
            splits = {**splits, **{part: splits["train"]._replace(part=part) for part in ("train", "val")}}
        return splits
    usual = {split: [folder / key / "images" for key in keys if (folder / key / "images").is_dir()]
             for split, keys in SPLIT_KEYS.items()}
    return {split: YoloSplit(data_file, (found[0],), (), (), (folder,)) for split, found in usual.items() if found}


@_refusing()
def suggest_data_file(folder: Path) -> str:
    """Return the data.yaml that would make a data set of pictures with label files beside them, "" where there are none.

    Darknet, CVAT, Label Studio and LabelImg write such folders.
    """
    first = {Path(place): min((name for name in files_in(place) if name.lower().endswith(IMAGE_SUFFIXES)), default="")
             for place in folders_below(folder)}  # a picture of each folder
    labelled = [place for place, name in first.items()
                if name and any((labels / f"{Path(name).stem}.txt").is_file() for labels in (label_folder(place), place))]
    if not labelled:
        return ""
    lists = [folder / name for name in NAME_LISTS if (folder / name).is_file()]
    names = lists[0].read_text(encoding="utf-8-sig", errors="replace").split("\n") if lists else ["FIRST CLASS", "SECOND CLASS"]
    texts = [json.dumps(name.strip(), ensure_ascii=False) for name in names if name.strip()]
    named = {split_of(place.relative_to(folder) / "x"): place for place in reversed(labelled)}
    named.pop("", None)
    others = (_short(place, folder) for place in labelled if place not in named.values())
    paths = {split: _short(named[split], folder) if split in named else next(others, "FOLDER_OF_OTHER_IMAGES")
             for split in ("train", "val")}
    return "\n".join([f"names: [{', '.join(texts)}]", *(f"{split}: {path}" for split, path in paths.items())])


@_refusing()
def read_yolo(split: YoloSplit, *, with_masks: bool, findings: Findings, val_fraction: float = VAL_FRACTION) -> RawSplit:
    """Read the images and labels of a split.

    Raises:
        InputError: data.yaml cannot be used, or there are no images.
    """
    if split.missing and not split.sources:
        raise InputError(f"{split.data_file}: {'; '.join(split.missing)}; correct data.yaml, or put the images there")
    findings.add("split_path_missing", KINDS["split_path_missing"], split.missing)
    findings.add("split_path_moved", KINDS["split_path_moved"], split.moved)
    content, folder = read_data_file(split.data_file), split.data_file.parent
    categories, form = read_categories(split.data_file, content, findings), read_line_form(split.data_file, content)
    listed = Counter(image for source in split.sources for image in _images_of(source, split.places, findings))
    images = sorted(listed)
    if not images:
        raise InputError(f"{', '.join(map(str, split.sources))}: no images found; they must be {', '.join(IMAGE_SUFFIXES)} files")
    if split.part:
        val = val_names([_short(image, folder) for image in images], val_fraction, split.data_file)
        images = [image for image in images if (_short(image, folder) in val) == (split.part == "val")]
    label_files = _match_labels(images, folder, findings)
    sizes, parts = np.empty((len(images), 2), dtype=np.int64), []
    segmentations: list[bytes] | None = [] if with_masks else None
    with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 4)) as pool:
        for start in range(0, len(images), CHUNK):
            chunk = range(start, min(start + CHUNK, len(images)))
            sizes[chunk] = _sizes(pool, [images[index] for index in chunk], findings)
            paths = {index: label_files[images[index]] for index in chunk if images[index] in label_files}
            files = [LabelFile(index, _short(path, folder), content)
                     for (index, path), content in zip(paths.items(), pool.map(_read_label, paths.values()))]
            found = parse_labels(files, [category.id for category in categories], findings, form)
            if segmentations is not None:
                scales = sizes[found.image_indices][:, ::-1]
                segmentations += encode_polygons([[] if points is None else [to_pixels(points, scale)]
                                                  for points, scale in zip(found.polygons, scales)])
            parts.append(found._replace(polygons=[]))
    labels, kept = join(parts, findings)
    scale = sizes[labels.image_indices][:, ::-1].astype(np.float64)
    raw = RawSplit(
        source=split.data_file, image_root=folder, image_ids=np.arange(len(images)), image_sizes=sizes, categories=categories,
        file_names=[_short(image, folder) for image in images], image_indices=labels.image_indices, category_ids=labels.class_ids,
        boxes=labels.boxes * np.tile(scale, 2), areas=labels.areas * scale.prod(axis=1),
        is_crowd=np.zeros(len(labels.boxes), dtype=bool),
        segmentations=None if segmentations is None else [segmentations[row] for row in np.flatnonzero(kept)],
    )
    return _repeat(raw, np.array([listed[image] for image in images]), findings)


def _repeat(raw: RawSplit, counts: np.ndarray, findings: Findings) -> RawSplit:
    """Make as many images of each one of the train split as `counts` (N,) says, each with an id of its own."""
    again = np.flatnonzero(counts > 1)
    kind = "listed_again_for_training" if findings.split == "train" else "listed_again"
    findings.add(kind, KINDS[kind], [f"{raw.file_names[index]} ({counts[index]} times)" for index in again],
                 count=int((counts - 1).sum()))
    if not len(again) or findings.split != "train":
        return raw
    images = np.repeat(np.arange(len(counts)), counts)
    return raw.with_images(images, image_ids=np.arange(len(images)))


def _locate(data_file: Path, content: dict[str, Any], key: str) -> YoloSplit:
    """Find the folders and lists that data.yaml names for a split."""
    folder = data_file.parent
    root = folder / "".join(read_paths(data_file, content, "path")[:1]) if "path" in content else folder
    places = (root, folder) if os.path.isdir(root) else (folder,)  # often a path of somebody's own machine
    sources, missing, moved = [], [], []
    for value in read_paths(data_file, content, key):
        tried = _candidates(value, places)
        found = next((path for path in tried if os.path.exists(path)), None)
        if found is None and (found := _find_end(value, places)) is not None:
            moved.append(f"{key}: {value!r} is {found}")
        if found is None:
            missing.append(f"{key}: {value!r} points nowhere (looked at {', '.join(map(str, tried))})")
        else:
            sources.append(found)
    return YoloSplit(data_file, tuple(sources), tuple(missing), tuple(moved), places)


def _find_end(value: str, places: tuple[Path, ...]) -> Path | None:
    """Return what the last parts of a path lead to, two of them or more, or all where only backslashes are in the way."""
    parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    ends = [place.joinpath(*parts[first:]) for first in range(max(1, len(parts) - 1)) for place in places]
    return next((path for path in ends if os.path.exists(path)), None)


def _candidates(value: str, places: tuple[Path, ...]) -> list[Path]:
    """Where a path of data.yaml may be.

    Roboflow writes paths relative to a folder below that of data.yaml, "../train/images". The data set's own folder is looked at
    first, so that a neighbour's train/images is never taken for it.
    """
    inner = value
    while inner.startswith("../"):
        inner = inner[len("../"):]
    tried = (inner, value, without_data_folder(value))
    return list(dict.fromkeys(Path(os.path.normpath(place / path)) for path in tried for place in places))


def _images_of(source: Path, places: tuple[Path, ...], findings: Findings) -> Iterator[Path]:
    """Give the images of a folder and all below it, of a list, or the one that this is."""
    if source.is_dir():
        yield from (Path(entry) for entry in pictures_below(str(source), strict=True))
    elif source.suffix.lower() == ".txt":
        yield from _listed_images(source, places, findings)
    else:
        yield source


def _listed_images(source: Path, places: tuple[Path, ...], findings: Findings) -> Iterator[Path]:
    try:
        lines = [line.strip() for line in source.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: this list of images is not UTF-8 text ({error}); save it as UTF-8") from None
    near = None  # of the whole folder, so made only if a line needs it
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        found = next((path for path in _candidates(line, (source.parent, *places)) if os.path.isfile(path)), None)
        if found is None:
            near = near or NearNames(places[-1])
            fitting = near.find(line)
            if len(fitting) == 1:
                findings.add("other_name", NAME_KINDS["other_name"], f"listed as {line!r}, there as {fitting[0]!r}")
                found = places[-1] / fitting[0]
        if found is None:
            findings.add("image_missing", KINDS["image_missing"], f"{source.name}:{number}: {line}")
        else:
            yield found


def _match_labels(images: list[Path], folder: Path, findings: Findings) -> dict[Path, Path]:
    """Return the label file of each image that has one, and report files that have no partner."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        by_folder[image.parent].append(image)
    found, without, sharing = {}, [], defaultdict(list)
    for image_folder, members in by_folder.items():
        names = {path: set(os.listdir(path)) for path in (label_folder(image_folder), image_folder) if path.is_dir()}
        for image in members:
            name = f"{image.stem}.txt"
            place = next((path for path in names if name in names[path]), None)
            if place is None:
                without.append(image)
            else:
                found[image] = place / name
                sharing[place / name].append(image.name)
        _report_orphans(image_folder, names, folder, findings)
    findings.add("label_shared", KINDS["label_shared"],
                 [f"{_short(path, folder)} ({', '.join(names)})" for path, names in sharing.items() if len(names) > 1])
    if not found:
        looked = [f"{_short(path, folder)} (its labels would be in {_short(label_folder(path), folder)})" for path in by_folder]
        findings.add("no_labels", KINDS["no_labels"], looked)
    else:
        findings.add("background_image", KINDS["background_image"], [_short(image, folder) for image in without])
    return found


def label_folder(image_folder: Path) -> Path:
    """Put "labels" in the place of the last "images" of a path."""
    parts = list(image_folder.parts)
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            return Path(*parts[:index], "labels", *parts[index + 1:])
    return image_folder


def _report_orphans(image_folder: Path, names: dict[Path, set[str]], folder: Path, findings: Findings) -> None:
    """Report the label files that belong to none of a folder's images."""
    stems = {os.path.splitext(name)[0] for name in os.listdir(image_folder) if name.lower().endswith(IMAGE_SUFFIXES)}
    folded = {stem.lower() for stem in stems}
    for place, content in names.items():
        orphans = sorted(name for name in content if name.endswith(".txt") and name[: -len(".txt")] not in stems)
        orphans = [name for name in orphans if _is_label_file(place / name)]
        by_case = [name for name in orphans if name[: -len(".txt")].lower() in folded]
        others = [name for name in orphans if name not in by_case]
        for kind, group in (("label_name_case", by_case), ("label_without_image", others)):
            findings.add(kind, KINDS[kind], [_short(place / name, folder) for name in group])


def _is_label_file(path: Path) -> bool:
    """Tell labels from notes, lists of classes and lists of images."""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(1000).split()
    return not first or len(first) >= 5 and first[0][0].isdigit()


def _read_label(path: Path) -> bytes | str:
    """Return what a label file holds, or the kind of what is wrong with it."""
    try:
        return path.read_bytes() if path.stat().st_size <= MAX_BYTES else "label_huge"
    except OSError:
        return "label_unreadable"


def _sizes(pool: ThreadPoolExecutor, images: list[Path], findings: Findings) -> np.ndarray:
    """Return the sizes (n, 2) h, w of pictures."""
    def size_of(image: Path) -> tuple[int, int] | None:
        try:
            return read_size(image)
        except ImageError:
            return None

    sizes = list(pool.map(size_of, images))
    unreadable = [str(image) for image, size in zip(images, sizes) if size is None]
    findings.add("no_image_size", KINDS["no_image_size"], unreadable)
    return np.array([size or UNKNOWN_SIZE for size in sizes], dtype=np.int64)


def to_pixels(points: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return fractions (n, 2) in pixels (2n,) as before they were divided: drawing rounds halves, so the last bits count."""
    return np.round(points * scale, 9).ravel()


def _short(path: Path, folder: Path) -> str:
    """Name a file relative to the data set's folder if it is below it."""
    return PurePosixPath(path.relative_to(folder)).as_posix() if path.is_relative_to(folder) else str(path)
