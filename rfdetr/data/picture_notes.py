"""Data sets with an annotation file for each picture, as Pascal VOC and LabelMe have them: found, and read as if they were COCO.

Splits are what the lists in ImageSets/Main say, or else the folders' names; where nothing names a split, all is divided by the
pictures' names (`layouts.divide`). The picture of a file is the one of its name, or of the name in it, in the nearest folder.
Category ids are 1, 2, ... in the order of the names in all splits, so that they are the same in each.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco import split_from_content
from rfdetr.data.file_names import base_name, files_in, pictures_below
from rfdetr.data.findings import Findings, Kind
from rfdetr.data.images import IMAGE_SUFFIXES, ImageError, read_size
from rfdetr.data.layouts import SPLIT_WORDS, divide, folders_below, split_of
from rfdetr.data.yolo import KINDS as YOLO_KINDS
from rfdetr.errors import InputError

LISTS = ("ImageSets", "Main")  # folders of VOC's lists of pictures
NO_PICTURES = ("segmentationclass", "segmentationobject")  # folders of masks, which have the pictures' names
KINDS = {
    "note_unreadable": Kind("error", "files", "annotation files that cannot be read", "correct them, or export them again",
                            "drops"),
    "note_foreign": Kind("warning", "files", "files of the annotations' type with other content, which are not used",
                         "nothing to do if they are no annotations", "drops"),
    "note_missing": Kind("info", "files", "listed pictures without an annotation file, taken as pictures without objects",
                         "nothing to do if they show no objects"),
    "picture_ambiguous": Kind("error", "files", "annotation files that several pictures fit equally well",
                              "put each beside its picture, or give the pictures names of their own", "drops"),
    "note_without_size": Kind("info", "files", "annotation files without the size of their picture, which was read from it",
                              "nothing to do"),
    "embedded_picture": Kind("info", "files", "pictures that are only inside of their annotation files, and are used from there",
                             "nothing to do; files of their own are read faster"),
    "nameless_object": Kind("error", "classes", "objects without a class", "name their class", "drops"),
    "without_area": Kind("warning", "boxes", "shapes that are no boxes, polygons, circles or masks, such as points and lines",
                         "draw boxes or polygons if they are objects", "drops"),
    "difficult": Kind("info", "boxes", "objects marked as difficult: training leaves them out, evaluation does not count them",
                      "nothing to do"),
}


class NoteError(ValueError):
    """An annotation file that cannot be read; the message says where and why."""


class PictureNote(NamedTuple):
    """What an annotation file says of its picture."""

    picture: str  # name of the file, "" where it has none
    size: tuple[int, int] | None  # h, w
    objects: list[dict[str, Any]]  # entries as COCO has them, with "id" for messages and "class" for the category's name
    has_picture: bool = False  # it holds the picture too


class NoteFormat(NamedTuple):
    """How the annotation files of a format are known and read."""

    suffix: str
    looks_like: Callable[[Path], bool]
    read: Callable[[Path], PictureNote | None]
    embedded: tuple[Callable, Callable] | None = None  # opens pictures by name; tells the ending of the one in a file


class NoteSplit(NamedTuple):
    """The annotation files of a split, and those of all of them."""

    folder: Path
    files: tuple[Path, ...]
    all_files: tuple[Path, ...]
    part: str = ""  # "train" or "val" of what is divided


def find_notes(kind: NoteFormat, folder: Path) -> dict[str, NoteSplit]:
    """Return the splits of a data set of this kind.

    Raises:
        InputError: some folders say a split, and others with annotation files do not.
    """
    if not isinstance(folder, Path) or not folder.is_dir():
        return {}
    by_folder = {}
    for place in map(Path, folders_below(folder)):
        files = sorted(place / name for name in files_in(str(place)) if name.lower().endswith(kind.suffix) and name[0] != ".")
        if any(map(partial(_is_one, kind), files[:3])):
            by_folder[place] = files
    if not by_folder:
        return {}
    every = tuple(file for files in by_folder.values() for file in files)
    groups = (kind.suffix == ".xml" and _listed(by_folder, folder)) or _by_folders(by_folder, folder)
    if "" in groups and "train" not in groups and "val" not in groups:
        whole = groups.pop("")
        groups = {"train": whole, "val": whole, **groups}
        return {split: NoteSplit(folder, files, every, "" if split == "test" else split) for split, files in groups.items()}
    return {split: NoteSplit(folder, groups[split], every) for split in ("train", "val", "test") if split in groups}


def _is_one(kind: NoteFormat, file: Path) -> bool:
    try:
        return kind.looks_like(file)
    except (OSError, ValueError):
        return False


def _by_folders(by_folder: dict[Path, list[Path]], root: Path) -> dict[str, tuple[Path, ...]]:
    """Divide files by the splits that their folders' names say; "" is for none."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for place, files in by_folder.items():
        groups[split_of(place.relative_to(root) / "x")] += files
    if "" in groups and groups.keys() & {"train", "val"}:
        raise InputError(f"{root}: holds annotation files in folders that are splits ({', '.join(filter(None, groups))}) and in "
                         f"others ({groups[''][0].parent}); move these, or name a folder that holds the splits only")
    return {split: tuple(files) for split, files in groups.items()}


def _listed(by_folder: dict[Path, list[Path]], root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the files that VOC's lists name; a list beside those of the splits, such as trainval, counts only without them."""
    found: dict[str, list[Path]] = defaultdict(list)
    homes = {base: base / place.relative_to(base).parts[0] for place in by_folder for base in place.parents
             if base.is_relative_to(root) and base.joinpath(*LISTS).is_dir()}
    for base, home in homes.items():
        files = sorted(base.joinpath(*LISTS).glob("*.txt"))
        splits = {SPLIT_WORDS[file.stem.lower()]: file for file in files if file.stem.lower() in SPLIT_WORDS}
        whole = [file for file in files if file.stem.lower() in ("trainval", "default", "all")]
        if "train" not in splits and whole:
            splits[""] = whole[0]
        for split, file in splits.items():
            names = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
            found[split] += [home / f"{name}.xml" for name in names if name and "\0" not in name]
    return {split: tuple(files) for split, files in found.items() if files}


def read_notes(
    kind: NoteFormat, split: NoteSplit, *, with_masks: bool, findings: Findings, val_fraction: float
) -> RawSplit:
    """Read a split of annotation files.

    Raises:
        InputError: none of them can be used.
    """
    notes = dict(_read_all(kind, split, findings))
    others = (entry["class"] for file in set(split.all_files) - notes.keys() for entry in _objects_of(kind, file))
    names = sorted({*others, *(entry["class"] for note in notes.values() for entry in note.objects)} - {""})
    if not notes or not names:
        raise InputError(f"{split.folder}: {'no objects in' if notes else 'none can be used of'} its {len(split.files)} "
                         f"annotation files ({', '.join(file.name for file in split.files[:3])}, ...)")
    images, annotations, embedded = _Entries(kind, split.folder, findings).of(notes, {name: i for i, name in enumerate(names, 1)})
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": id_, "name": name} for id_, name in enumerate(names, start=1)]}
    if split.part:
        content = divide(content, split.part, val_fraction, split.folder)
    raw = split_from_content(content, split.folder, split.folder, findings=findings, with_masks=with_masks)
    return replace(raw, open_image=kind.embedded[0](str(split.folder), embedded)) if embedded else raw


def _objects_of(kind: NoteFormat, file: Path) -> list[dict[str, Any]]:
    """Return the objects of another split's file, whose faults are reported there."""
    try:
        note = kind.read(file)
    except (NoteError, OSError):
        note = None
    return note.objects if note else []


def _read_all(kind: NoteFormat, split: NoteSplit, findings: Findings) -> Iterator[tuple[Path, PictureNote]]:
    for file in split.files:
        name = _relative(file, split.folder)
        try:
            note = kind.read(file)
        except FileNotFoundError:
            findings.add("note_missing", KINDS["note_missing"], name)
            yield file, PictureNote("", None, [])
        except (NoteError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            findings.add("note_unreadable", KINDS["note_unreadable"], f"{name}: {reason}")
        else:
            if note is None:
                findings.add("note_foreign", KINDS["note_foreign"], name)
            else:
                yield file, note


class _Entries:
    """Makes COCO's entries of annotation files, with the pictures that belong to them."""

    def __init__(self, kind: NoteFormat, folder: Path, findings: Findings) -> None:
        self._kind, self._folder, self._findings = kind, folder, findings
        self._pictures: dict[str, list[str]] = defaultdict(list)
        for entry in pictures_below(str(folder)):
            name = os.path.relpath(entry.path, folder)
            if not {part.lower() for part in Path(name).parts[:-1]} & set(NO_PICTURES):
                self._pictures[_stem(name)].append(name)

    def of(
        self, notes: dict[Path, PictureNote], ids: dict[str, int]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
        """Return the entries of images and of objects, and the files of the pictures that are only in them."""
        images, annotations, embedded = [], [], {}
        for number, (file, note) in enumerate(notes.items()):
            name = self._find(file, note)
            if name is None and note.has_picture:
                name = self._name_of_embedded(file, note)
                embedded[name] = str(file)
            size = note.size or self._size_of(name, file)
            if name is None or size is None:
                continue
            images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
            annotations += [{**entry, "image_id": number, "category_id": ids[entry["class"]]}
                            for entry in note.objects if self._is_object(entry)]
        self._add("embedded_picture", [f"{name} in {_relative(Path(file), self._folder)}" for name, file in embedded.items()])
        return images, annotations, embedded

    def _is_object(self, entry: dict[str, Any]) -> bool:
        if "bbox" not in entry and "kind" in entry:
            self._add("without_area", f"{entry['id']}: {entry['kind']}")
            return False
        self._add("nameless_object", [] if entry["class"] else entry["id"])
        self._add("difficult", entry["id"] if entry.get("difficult") == "1" else [])
        return entry["class"] != ""

    def _find(self, file: Path, note: PictureNote) -> str | None:
        """Return the picture of a file: of its name or the name in it, in the nearest folder."""
        own, listed = Path(_relative(file, self._folder)), base_name(note.picture)
        folders = {part.casefold() for part in own.parts[:-1]}

        def fit(name: str) -> tuple[int, bool, bool]:
            near = folders & {part.casefold() for part in Path(name).parts[:-1]}
            return len(near), _stem(name) == _stem(own.name), base_name(name) == listed

        found = {name: fit(name) for stem in {_stem(own.name), _stem(listed)} for name in self._pictures.get(stem, ())}
        best = [name for name, value in found.items() if value == max(found.values())]
        if len(best) > 1:
            self._add("picture_ambiguous", f"{own}: {', '.join(sorted(best)[:3])}")
        elif not best and not note.has_picture:
            self._findings.add("image_missing", YOLO_KINDS["image_missing"], f"{note.picture or own.stem}, of {own}")
        return best[0] if len(best) == 1 else None

    def _name_of_embedded(self, file: Path, note: PictureNote) -> str:
        listed = note.picture.replace("\\", "/").rpartition("/")[2]
        if not listed.lower().endswith(IMAGE_SUFFIXES) or not listed.isprintable():
            listed = file.stem + self._kind.embedded[1](file)
        return _relative(file.with_name(listed), self._folder)

    def _size_of(self, name: str | None, file: Path) -> tuple[int, int] | None:
        if name is None:
            return None
        self._add("note_without_size", _relative(file, self._folder))
        try:
            return read_size(self._folder / name)
        except ImageError as error:
            self._findings.add("no_image_size", YOLO_KINDS["no_image_size"], str(error))
            return None

    def _add(self, kind: str, examples: str | list[str]) -> None:
        self._findings.add(kind, KINDS[kind], examples)


def _stem(name: str) -> str:
    """Return the name of a picture or of its file without folder and ending, in a form to compare."""
    base = base_name(name)
    stem, ending = os.path.splitext(base)
    return stem if ending in (*IMAGE_SUFFIXES, ".xml", ".json") else base


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)
