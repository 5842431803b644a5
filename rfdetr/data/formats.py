"""Where each data set format keeps its splits, and how a format is recognised.

A new format is one more entry of `FORMATS`: a function that finds the splits of a folder, and a reader that returns a `RawSplit`;
one with an annotation file for each picture, a `NoteFormat` that reads one.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rfdetr.data.annotations import RawSplit
from rfdetr.data.file_names import match_names
from rfdetr.data.findings import Findings
from rfdetr.data.labelme import EmbeddedPictures, looks_like_labelme, picture_ending, read_labelme
from rfdetr.data.layouts import ROBOFLOW_FILE, VAL_FRACTION, Files, find_coco, find_roboflow, look, read_files, splits_of, suggest
from rfdetr.data.objects365 import find_objects365, read_objects365
from rfdetr.data.picture_notes import NoteFormat, find_notes, read_notes
from rfdetr.data.shards import SPLITS, find_shards, is_address, list_folder, read_shards
from rfdetr.data.voc import looks_like_voc, read_voc
from rfdetr.data.yolo import DATA_FILES, find_yolo, read_yolo, suggest_data_file
from rfdetr.errors import InputError

Paths = Mapping[str, Mapping[str, str]]


class Format(NamedTuple):
    """How one format is found and read."""

    find: Callable[..., dict[str, Any]]  # folder (or address) -> its splits; what a split is, only `read` needs to know
    read: Callable[..., RawSplit]  # (that, with_masks=, findings=)
    folders: Callable[[Any], Iterable[Path]]  # a split -> where its images may lie, beside the folder itself
    looks_like: str  # for messages


def _notes(kind: NoteFormat, looks_like: str) -> Format:
    return Format(partial(find_notes, kind), partial(read_notes, kind), lambda split: (), looks_like)


FORMATS = {
    "coco": Format(find_coco, read_files, lambda split: (split.images,),
                   "annotations/instances_train2017.json and train2017/, the same with val2017"),
    "roboflow": Format(find_roboflow, read_files, lambda split: (split.images,),
                       f"train/{ROBOFLOW_FILE}, valid/{ROBOFLOW_FILE}, images beside them"),
    "yolo": Format(find_yolo, read_yolo, lambda split: (*split.places, *split.sources),
                   "data.yaml with names and the paths of train, val and test; or Darknet's obj.data"),
    "objects365": Format(find_objects365, read_objects365, lambda split: split.images,
                         "zhiyuan_objv2_train.json and train/patch0/, the same with val"),
    "shards": Format(find_shards, read_shards, lambda split: (),
                     "train-000000.tar, ... and train.json, the same with val (tools/pack_shards.py)"),
    "voc": _notes(NoteFormat(".xml", looks_like_voc, read_voc),
                  "Annotations/*.xml and JPEGImages/ (with ImageSets/Main/train.txt, ...), or train/*.xml with their pictures"),
    "labelme": _notes(NoteFormat(".json", looks_like_labelme, read_labelme, (EmbeddedPictures, picture_ending)),
                      "a JSON file beside each picture, in train/ and val/ or in one folder"),
}
BY_LOOKING = ("voc", "labelme")  # known by the content of their files, so looked for where no name says a format
FILES = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".data": "yolo"}  # that stand for their data set


def detect_format(dataset_dir: str | Path, format: str = "auto") -> str:
    """Return the format of a data set's folder; "auto" looks at what is in it.

    Raises:
        InputError: there is no such folder, or nothing in it that a format could be known by.
    """
    folder = _place(dataset_dir)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"data.format: {format!r} is unknown; it must be auto or one of {', '.join(FORMATS)}")
    if is_address(dataset_dir):
        if format not in ("auto", "shards"):
            raise InputError(f"{folder}: only shards are read from an address, not data.format {format!r}; "
                             "copy the data set to a disk, or pack it with tools/pack_shards.py")
        format = "shards"
    elif folder.is_file() and folder.suffix in FILES and format in ("auto", FILES[folder.suffix]):
        format = FILES[folder.suffix]
        if not FORMATS[format].find(folder):
            raise InputError(f"{folder}: says nothing of a data set; expected {FORMATS[format].looks_like}")
    elif not folder.is_dir():
        looked = "" if folder.is_absolute() else f", looked for from {Path.cwd()}"
        what = "is a file, not a folder" if folder.exists() else f"there is no such folder{looked}"
        raise InputError(f"{folder}: {what}; pass where the data set is now (--data.dataset_dir, or --eval.sets, {{}} for none)")
    names = [format] if format != "auto" else [name for name in FORMATS if name not in BY_LOOKING]
    found = [name for name in names if FORMATS[name].find(folder)]
    looked = look(folder) if not found and "coco" in names and not is_address(dataset_dir) else []
    if format == "auto" and (not found or Path(folder, "ImageSets").is_dir()):
        found += [name for name in BY_LOOKING if FORMATS[name].find(folder)]
        found += ["coco"] if looked and found else []
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{folder}: holds data of more than one format ({', '.join(found)}); choose one with data.format")
    if splits_of(looked):
        return "coco"
    if looked:
        files = ", ".join(str(file.annotations.relative_to(folder)) for file in looked[:5])
        raise InputError(f"{folder}: holds COCO files ({files}) in a layout that does not say which splits they are, or where "
                         f"their images are; say it, for example {suggest(folder, looked)}")
    if "yolo" in names and not is_address(dataset_dir) and (content := suggest_data_file(folder)):
        raise InputError(f"{folder}: holds pictures with label files of YOLO, but no {DATA_FILES[0]} that names the classes and "
                         f"splits; write one, such as the following, once each split has a folder of its own:\n{content}")
    wanted = "; or ".join(f"{name}: {FORMATS[name].looks_like}" for name in (names if len(names) == 1 else FORMATS))
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
    if not 0 < val_fraction < 1:
        raise InputError(f"data.val_fraction: {val_fraction} is not possible; it must be between 0 and 1")
    found_format, found = _find_splits(dataset_dir, format, paths)
    if split not in found:
        shown = ", ".join(_shown(name, found_format.folders(one), _place(dataset_dir)) for name, one in found.items())
        raise InputError(f"{dataset_dir}: has no {split} split (found: {shown}); expected {found_format.looks_like}")
    collected = Findings() if findings is None else findings
    collected.split = split
    options = {"val_fraction": val_fraction} if hasattr(found[split], "part") else {}
    raw = found_format.read(found[split], with_masks=with_masks, findings=collected, **options)
    place = _place(dataset_dir)
    roots = [place.parent if isinstance(place, Path) and place.is_file() else place,
             *(folder for one in found.values() for folder in found_format.folders(one))]
    raw = match_names(raw, roots, collected, allow_outside=allow_outside)
    if findings is None:
        collected.refuse_errors(raw.source)
    return raw


def _shown(split: str, folders: Iterable[Path], root: Path | str) -> str:
    """Name a split, and the folders that it is in where they are called otherwise."""
    names = [path.relative_to(root).as_posix() for path in folders if path != root and path.is_relative_to(root)]
    return f"{split} in {', '.join(names)}" if set(names) - {split} else split


def _find_splits(dataset_dir: str | Path, format: str, paths: Paths | None) -> tuple[Format, dict[str, Any]]:
    if paths is None:
        found_format = FORMATS[detect_format(dataset_dir, format)]
        folder = _place(dataset_dir)
        found = found_format.find(folder)
        return found_format, found or splits_of(look(folder))  # only COCO's files are found by looking
    if format not in ("auto", "coco") or is_address(dataset_dir):
        raise InputError(f"data.splits: names files of a COCO data set on disk, not of format {format!r} at {dataset_dir}; "
                         "leave one of data.splits and data.format out")
    return FORMATS["coco"], {split: _given_files(_place(dataset_dir), split, given) for split, given in paths.items()}


def _given_files(folder: Path, split: str, given: Mapping[str, str]) -> Files:
    if split not in SPLITS or not isinstance(given, Mapping) or set(given) != {"annotations", "images"}:
        raise InputError(f"data.splits: {split}: {given} is not possible; it must give for {', '.join(SPLITS)} (or some of them) "
                         "the two paths annotations (a JSON file) and images (a folder)")
    return Files(folder / given["annotations"], folder / given["images"])


def _place(dataset_dir: str | Path) -> Path | str:
    """Return the folder of a data set, or the file that stands for it; an address stays text: a path would lose a slash."""
    return str(dataset_dir).rstrip("/") if is_address(dataset_dir) else Path(dataset_dir)
