"""Pack a data set of any format into tar shards in WebDataset's layout, with an index (shards.py says what is in them)."""

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco_writer import image_entry, row_entry
from rfdetr.data.formats import Paths, available_splits, detect_format, read_split
from rfdetr.data.images import IMAGE_SUFFIXES
from rfdetr.data.shards import CATEGORIES, find_shards, scan_shards
from rfdetr.errors import InputError
from rfdetr.files import new_folder, write_json

MEGABYTE = 10**6


def pack_dataset(
    dataset_dir: str | Path, output: Path, *, format: str = "auto", paths: Paths | None = None, shard_mb: int = 256,
    **reading: Any,
) -> dict[str, RawSplit]:
    """Pack all splits of a data set into a new folder, which appears when it is complete.

    Args:
        paths, reading: as `read_split` takes them.

    Returns:
        what was packed, by split.
    """
    format = detect_format(dataset_dir, format) if paths is None else format
    packed = {}
    with new_folder(output) as folder:
        for split in available_splits(dataset_dir, format, paths):
            packed[split] = read_split(dataset_dir, split, format=format, paths=paths, with_masks=True, **reading)
            pack_split(packed[split], folder, split, shard_mb * MEGABYTE)
        categories = {category.id: category._asdict() for raw in reversed(packed.values()) for category in raw.categories}
        write_json(folder / CATEGORIES, {"categories": [categories[id_] for id_ in sorted(categories)]})
        for split, shards in find_shards(folder).items():
            content = scan_shards(shards)
            content["categories"] = [category._asdict() for category in packed[split].categories]
            (folder / f"{split}.json").write_text(json.dumps(content, default=list), encoding="utf-8")  # polygons are arrays
    return packed


def pack_split(raw: RawSplit, folder: Path, split: str, shard_bytes: int) -> None:
    """Write the shards of one split; a shard is closed when it has reached its size."""
    number, tar, rows_by_image = 0, None, raw.rows_by_image()
    for index, name in enumerate(tqdm(raw.file_names, desc=split, unit="images", disable=not sys.stderr.isatty())):
        if tar is None:
            tar = tarfile.open(folder / f"{split}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT)
        picture = read_picture(raw, name)
        key = f"{raw.image_ids[index]:012d}"
        _add(tar, f"{key}{Path(name).suffix.lower()}", picture)
        objects = [row_entry(raw, row, row + 1) for row in rows_by_image[index].tolist()]
        _add(tar, f"{key}.json", json.dumps({**image_entry(raw, index), "annotations": objects}).encode())
        if tar.offset >= shard_bytes or index == len(raw.file_names) - 1:
            tar.close()
            number, tar = number + 1, None


def read_picture(raw: RawSplit, name: str) -> bytes:
    """Return the content of the file of a picture."""
    if not name.lower().endswith(IMAGE_SUFFIXES):
        raise InputError(f"{raw.source}: {name!r} has none of the endings {', '.join(IMAGE_SUFFIXES)}; rename the file")
    if raw.open_image is not None:
        return raw.open_image(name).read()
    path = raw.image_root / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image file; put it there, or take it out of the annotations") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without a date or an owner, so that the same data give the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
