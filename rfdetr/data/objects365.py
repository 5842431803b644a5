"""Objects365: COCO's kind of annotation file over images in many `patch` folders."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco import read_coco
from rfdetr.data.findings import Findings
from rfdetr.errors import InputError

SPLITS = ("train", "val")  # the test split has no annotations
ANNOTATIONS = "zhiyuan_objv2_{}.json"


class Objects365Split(NamedTuple):
    """What makes up one split."""

    annotations: Path
    images: tuple[Path, ...]  # folders that may hold the patch folders


def find_objects365(folder: Path) -> dict[str, Objects365Split]:
    """Return the splits whose annotation file is in the folder, in annotations/ or beside the images."""
    found = {}
    for split in SPLITS:
        files = [place / ANNOTATIONS.format(split) for place in (folder, folder / "annotations", folder / split)]
        there = [file for file in files if file.is_file()]
        if there:
            found[split] = Objects365Split(there[0], (folder / split, folder / "images" / split, folder))
    return found


def read_objects365(split: Objects365Split, *, with_masks: bool, findings: Findings) -> RawSplit:
    """Read a split.

    The file says images/v1/patch8/x.jpg; after unpacking the picture is in val/patch8/x.jpg, or in val/images/v1/patch8/x.jpg.

    Raises:
        InputError: a patch folder is missing, or the annotation file is wrong.
    """
    raw = read_coco(split.annotations, split.images[-1], with_masks=with_masks, findings=findings)
    paths = [PurePosixPath(name.replace("\\", "/")) for name in raw.file_names]
    folders = {parent: _patch_folder(parent, split) for parent in dict.fromkeys(path.parent for path in paths)}
    names = [(folders[path.parent] / path.name).relative_to(raw.image_root).as_posix() for path in paths]
    return replace(raw, file_names=names)


def _patch_folder(named: PurePosixPath, split: Objects365Split) -> Path:
    """Find a folder that the annotation file names."""
    candidates = [root / tail for root in split.images for tail in (named, named.name)]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        raise InputError(f"{split.annotations}: its images in {named} are not there (looked at "
                         f"{', '.join(map(str, candidates))}); unpack that archive, or take the images out of the file")
    return found
