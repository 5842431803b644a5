"""COCO files and their images in any layout: the usual ones by their names, others by looking into the JSON files.

A file that is the only one, of a name that says no split, is divided: an image belongs to val where the hash of its file name, as
a number in [0, 1), is below `val_fraction`. So neither the order nor other images matter; the image with the lowest or highest
hash changes sides where one of the splits would be empty.
"""

import hashlib
import json
import logging
import mmap
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco import read_coco
from rfdetr.data.file_names import base_name, files_in, holds
from rfdetr.data.findings import Findings
from rfdetr.errors import InputError

COCO_NAMES = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid"), "test": ("test2017", "test")}
ROBOFLOW_NAMES = {"train": "train", "val": "valid", "test": "test"}
ROBOFLOW_FILE = "_annotations.coco.json"
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
               "test": "test", "testing": "test"}  # fmt: skip
LISTS = [re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations", b"categories")]
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
MAX_DEPTH = 3  # of folders that are looked at, below the data set's
MAX_FOLDERS = 200
MAX_JSON_FILES = 20  # in a folder; where there are more, each belongs to an image
NAMES_READ, NAMES_TRIED = 2000, 30  # of the images that a file lists
VAL_FRACTION = 0.1

logger = logging.getLogger(__name__)


class Files(NamedTuple):
    """What makes up one split in COCO's formats."""

    annotations: Path
    images: Path  # folder
    part: str = ""  # "train" or "val" of a file that holds both


class Found(NamedTuple):
    """A COCO file that was found by looking."""

    annotations: Path
    images: Path | None  # folder where most of its images are
    split: str  # that its name says, or ""


def find_coco(folder: Path) -> dict[str, Files]:
    """Return the splits in COCO's own layout, or around one file, and of those that it lacks, files of the same kind of name."""
    if folder.is_file():
        return _around(folder)
    found = {}
    for split, names in COCO_NAMES.items():
        for name in names:
            annotations = folder / "annotations" / f"instances_{name}.json"
            if annotations.is_file():
                images = folder / "images" / name
                found[split] = Files(annotations, images if images.is_dir() else folder / name)
                break
    return _complete(folder, found)


def find_roboflow(folder: Path) -> dict[str, Files]:
    """Return the splits in the layout of Roboflow's export; val/ for valid/ is taken too."""
    files = {split: Files(folder / name / ROBOFLOW_FILE, folder / name) for split, name in ROBOFLOW_NAMES.items()}
    return _complete(folder, {split: file for split, file in files.items() if file.annotations.is_file()})


def look(folder: Path, wanted: Callable[[Path], bool] = lambda file: True) -> list[Found]:
    """Return the COCO files in a folder, with the folders of their images."""
    folders = list(folders_below(folder))
    files = [Path(place, name) for place in folders for name in sorted(_json_files(place))]
    listed = {file: names for file in filter(wanted, files) if (names := _listed_names(file)) is not None}
    if not listed:
        return []
    contents = {place: {base_name(name) for name in files_in(place)} for place in folders}
    return [Found(file, _find_images(file, names, folder, contents), split_of(file.relative_to(folder)))
            for file, names in listed.items()]


def splits_of(found: list[Found]) -> dict[str, Files]:
    """Return the splits that files mean; none where that is not clear."""
    if len(found) == 1 and found[0].images and not found[0].split:
        return {part: Files(found[0].annotations, found[0].images, part) for part in ("train", "val")}
    names = Counter(file.split for file in found)
    if "" in names or max(names.values(), default=0) > 1 or any(file.images is None for file in found):
        return {}
    by_split = {file.split: Files(file.annotations, file.images) for file in found}
    return {split: by_split[split] for split in ("train", "val", "test") if split in by_split}


def suggest(folder: Path, found: list[Found]) -> str:
    """Return the setting that would make files usable which mean no splits by themselves."""
    named = {split: file for file in reversed(found) for split in (file.split,) if split}
    others = iter([file for file in found if file not in named.values()])
    chosen = {split: file for split in ("train", "val", "test") if (file := named.get(split) or next(others, None))}
    parts = [f"{split}: {{annotations: {json.dumps(file.annotations.relative_to(folder).as_posix(), ensure_ascii=False)}, "
             f"images: {json.dumps(_relative(file.images, folder), ensure_ascii=False)}}}" for split, file in chosen.items()]
    return f"data.splits: {{{', '.join(parts)}}}"


def read_files(files: Files, *, with_masks: bool, findings: Findings, val_fraction: float) -> RawSplit:
    """Read a split of COCO's formats.

    Raises:
        InputError: the folder of the images is missing, or the annotation file is wrong.
    """
    if not files.images.is_dir():
        raise InputError(f"{files.images}: there is no such folder; the images of {files.annotations} must be in it")

    def choose(content: dict[str, Any]) -> dict[str, Any]:
        return divide(content, files.part, val_fraction, files.annotations) if files.part else content

    return read_coco(files.annotations, files.images, with_masks=with_masks, findings=findings, choose=choose)


def divide(content: dict[str, Any], part: str, val_fraction: float, source: Path) -> dict[str, Any]:
    """Return the train or the val part of the content of a COCO file; what is wrong in it stays in the train part."""
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        return content
    names = [image.get("file_name") if isinstance(image, dict) else None for image in images]
    val = val_names([name for name in names if isinstance(name, str)], val_fraction, source)
    in_val = [isinstance(name, str) and name in val for name in names]
    ids = {_key(image.get("id")) for image, is_val in zip(images, in_val) if is_val}
    wanted = part == "val"
    return {
        **content, "images": [image for image, is_val in zip(images, in_val) if is_val == wanted],
        "annotations": [row for row in annotations if (isinstance(row, dict) and _key(row.get("image_id")) in ids) == wanted],
    }


def val_names(names: Iterable[str], val_fraction: float, source: Path) -> set[str]:
    """Return which of all images are the val split.

    Raises:
        InputError: there are too few of them.
    """
    draws = {name: _draw(name) for name in names}
    if len(draws) < 2:
        raise InputError(f"{source}: is the only source of annotations and lists {len(draws)} images, which cannot be divided "
                         "into train and val; name the files of the splits with data.splits")
    val = {name for name, draw in draws.items() if draw < val_fraction} or {min(draws, key=draws.get)}
    if len(val) == len(draws):
        val.remove(max(draws, key=draws.get))
    logger.info("%s: is the only source of annotations, so it is divided: of %d images, the %d whose names' hash is below "
                "val_fraction %g are the val split", source, len(draws), len(val), val_fraction)
    return val


def _draw(name: str) -> float:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _key(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _complete(folder: Path, known: dict[str, Files]) -> dict[str, Files]:
    """Add the splits whose files have the name of a known one but for the word of the split, as instances_Validation.json."""
    if not known or {"train", "val"} <= known.keys():
        return known
    patterns = {_pattern(file.annotations) for file in known.values()}
    found = look(folder, lambda file: _pattern(file) in patterns and split_of(file.relative_to(folder)) not in ("", *known))
    splits = {**known, **splits_of(found)}
    return {split: splits[split] for split in COCO_NAMES if split in splits}


def _around(file: Path) -> dict[str, Files]:
    """Return the splits of a COCO file and of those like it, whose names say them; a file without a split is divided."""
    roots = (file.parent, file.parent.parent)
    for root in roots:
        found = look(root, lambda other: other == file)
        if not found:
            raise InputError(f"{file}: is no COCO file, which has the lists images, annotations and categories")
        if found[0].images is not None:
            split = split_of(file.relative_to(roots[1]))
            known = {split: Files(file, found[0].images)} if split else {}
            complete = next((splits for root in roots if len(splits := _complete(root, known)) > 1), known)
            is_named = len(complete) > 1 or split_of(Path(file.name))
            return complete if is_named else splits_of([found[0]._replace(split="")])
    raise InputError(f"{file}: the folder of its images is not found; name the folder that holds both, and both with data.splits")


def _pattern(file: Path) -> str:
    return re.sub("[a-z]+", lambda word: "*" if word[0] in SPLIT_WORDS else word[0], re.sub(r"\d+", "", file.stem.casefold()))


def split_of(file: Path) -> str:
    """Return the split that the name of a file says, or of the nearest folder whose name says one."""
    for name in (file.stem, *(parent.name for parent in file.parents)):
        said = {SPLIT_WORDS[word] for word in re.findall("[a-z]+", name.casefold()) if word in SPLIT_WORDS}
        if said:
            return said.pop() if len(said) == 1 else ""
    return ""


def folders_below(root: Path) -> Iterator[str]:
    """Give a folder and those below it, the upper ones first."""
    level = [str(root)]
    for _ in range(MAX_DEPTH + 1):
        yield from level[:MAX_FOLDERS]
        below = []
        for folder in level[:MAX_FOLDERS]:
            try:
                with os.scandir(folder) as entries:
                    below += [entry.path for entry in entries
                              if not entry.name.startswith((".", "__MACOSX")) and holds(entry.is_dir)]
            except OSError:
                continue
        level = sorted(below)


def _json_files(folder: str) -> list[str]:
    names = [name for name in files_in(folder) if name.lower().endswith(".json") and not name.startswith("._")]
    return names if len(names) <= MAX_JSON_FILES else []


def _listed_names(file: Path) -> list[str] | None:
    """Return some of the file names that a COCO file lists, None if it is none; the file is searched, not parsed."""
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if not all(pattern.search(data) for pattern in LISTS):
                return None
            names = [found[1] for found in islice(FILE_NAME.finditer(data), NAMES_READ)]
    except (OSError, ValueError):  # not readable, or empty
        return None
    try:
        return [json.loads(name) for name in names[:: max(1, len(names) // NAMES_TRIED)]]
    except ValueError:
        return []


def _find_images(file: Path, names: list[str], root: Path, contents: dict[str, set[str]]) -> Path | None:
    """Return the folder that has most of the images of a file; of several, that which is named like it, or nearest."""
    relative = [name for name in names if not os.path.isabs(name) and "\0" not in name and name.isprintable()]
    words = set(re.findall("[a-z0-9]+", str(file.relative_to(root)).casefold()))

    def fits(folder: str) -> tuple[int, ...]:
        place = Path(folder).relative_to(root)
        exact = sum(os.path.isfile(os.path.join(folder, name)) for name in relative)
        near = sum(base_name(name) in contents[folder] for name in names)
        alike = len(words & set(re.findall("[a-z0-9]+", str(place).casefold())))
        return exact, near, alike, split_of(place / "x") == split_of(file.relative_to(root)), -len(place.parts)

    best = max(contents, key=fits)
    return Path(best) if any(fits(best)[:2]) else None


def _relative(images: Path | None, folder: Path) -> str:
    return "FOLDER_OF_ITS_IMAGES" if images is None else images.relative_to(folder).as_posix()
