"""Data sets as tar shards in WebDataset's layout, in a folder or at an address.

A sample is two members of a tar: the picture ``KEY.jpg``, and ``KEY.json``, COCO's entry of that image with its `annotations` in
it. The shards of a split are ``train-000000.tar``, ``train-000001.tar``, ...; ``categories.json`` beside them is COCO's list of
categories. The index ``train.json`` is the split as one COCO file, which also says where in the shards each picture lies. Each
picture is read by its range of bytes, in any order, so all that the samplers promise for files (the order, a resume at any step,
no image twice) holds here too. Without an index the tars are gone through once when the data set is opened.
"""

import io
import logging
import os
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from rfdetr.data.annotations import RawSplit
from rfdetr.data.coco import split_from_content
from rfdetr.data.file_names import is_possible
from rfdetr.data.findings import Findings
from rfdetr.data.images import IMAGE_SUFFIXES, ImageError
from rfdetr.data.json_file import parse_json
from rfdetr.errors import InputError

CATEGORIES = "categories.json"
SPLITS = ("train", "val", "test")
SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d+\.tar")
PROTOCOLS = ("s3", "gs", "gcs", "az", "abfs", "http", "https", "file", "memory")  # fsspec has some that run commands
END_BLOCK = 512  # bytes; a whole tar has one of zeros behind its last member
MAX_PICTURE = 2**30  # bytes; more is a mistake
MAX_ENTRY = 2**26  # bytes of the JSON of one sample
MAX_PLACE = 2**62  # bytes; no storage is as large
COPY_AGAIN = "copy the shards and their index again, or pack them anew with tools/pack_shards.py"

logger = logging.getLogger(__name__)


class Shards(NamedTuple):
    """One split."""

    folder: Path | str  # or address
    split: str
    sizes: dict[str, int | None]  # file name of each shard -> bytes, None where the storage does not say
    has_index: bool


def is_address(dataset_dir: str | Path) -> bool:
    """Tell whether this is an address such as ``s3://bucket/folder``, and not a path."""
    return isinstance(dataset_dir, str) and re.match(r"[^/]*:(:|//)", dataset_dir) is not None


def list_folder(folder: Path | str) -> dict[str, int | None]:
    """Return the names of what lies in a folder or at an address, with sizes in bytes."""
    with _plain_errors(folder):
        filesystem, path = _storage(folder)
        return {posixpath.basename(entry["name"].rstrip("/")): entry["size"] for entry in filesystem.ls(path, detail=True)}


def find_shards(folder: Path | str) -> dict[str, Shards]:
    """Return the splits that lie in a folder or at an address."""
    files = list_folder(folder)
    sizes = defaultdict(dict)
    for name in sorted(files):
        if match := SHARD.fullmatch(name):
            sizes[match[1]][name] = files[name]
    return {split: Shards(folder, split, sizes[split], f"{split}.json" in files) for split in SPLITS if split in sizes}


def read_shards(shards: Shards, *, findings: Findings, with_masks: bool = False) -> RawSplit:
    """Read the annotations of one split.

    Raises:
        InputError: a shard is missing or incomplete, or the index or a sample is not what it should be.
    """
    if shards.has_index:
        source = f"{shards.folder}/{shards.split}.json"
        content = parse_json(io.BytesIO(_read_file(source)), source)
    else:
        source = f"{shards.folder}/{shards.split}-*.tar"
        logger.info("%s: no index %s.json; going through %d tars instead", source, shards.split, len(shards.sizes))
        content = scan_shards(shards)
    raw = split_from_content(content, source, shards.folder, findings=findings, with_masks=with_masks)
    places = _places(content["images"], source)
    _check_shards(places, shards, source)
    return replace(raw, open_image=TarPictures(shards.folder, places))


def scan_shards(shards: Shards) -> dict[str, Any]:
    """Go through the tars of a split: their annotations as the content of a COCO file, which is what an index holds."""
    images, annotations = [], []
    for shard in shards.sizes:
        for name, entry, picture in _samples(f"{shards.folder}/{shard}"):
            image = {"id": len(images), **entry, "file_name": f"{shard}/{picture.name}", "offset": picture.offset_data,
                     "length": picture.size}
            objects = image.pop("annotations", None)
            if not isinstance(objects, list) or not all(isinstance(row, dict) for row in objects):
                raise InputError(f"{shards.folder}/{shard}/{name}: has no list of 'annotations'; it must be COCO's entry of the "
                                 "image with the image's annotations in it")
            images.append(image)
            annotations += [{**row, "image_id": image["id"]} for row in objects]
    return {"images": images, "annotations": annotations, "categories": _read_categories(shards.folder)}


class TarPictures:
    """Opens pictures by their name ``SHARD/MEMBER``; it keeps no file open, so any process may have a copy of it."""

    def __init__(self, folder: Path | str, places: dict[str, tuple[int, int]]) -> None:
        names = sorted(places, key=os.fsencode)
        self._folder = str(folder)
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        self._ranges = np.array([places[name] for name in names], dtype=np.int64).reshape(-1, 2)

    def __call__(self, name: str) -> BinaryIO:
        start, end = self._ranges[np.searchsorted(self._names, os.fsencode(name))].tolist()
        with _plain_errors(f"{self._folder}/{name}", ImageError):
            # fsspec keeps its own list of open storages, and makes a new one in each process
            filesystem, path = _storage(self._folder)
            content = filesystem.cat_file(f"{path}/{name.partition('/')[0]}", start=start, end=end)
        if len(content) != end - start:  # a web server that knows no ranges sends the whole shard
            raise ImageError(f"{self._folder}/{name}: {len(content):,} bytes came for this picture of {end - start:,}; either "
                             f"the storage cannot read ranges of bytes, or the shard is not complete: {COPY_AGAIN}")
        return io.BytesIO(content)


def _samples(shard: str) -> Iterator[tuple[str, dict, tarfile.TarInfo]]:
    """Go through a tar: the name of each JSON member, its content, and the picture with the same key."""
    entries, pictures = {}, {}
    for member, content in _members(shard):
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")  # as webdataset has it: the key ends at the first dot
        if ending == "json":
            entries[folder, stem] = member.name, parse_json(io.BytesIO(content), f"{shard}/{member.name}")
        elif f".{ending.lower()}" in IMAGE_SUFFIXES:
            pictures[folder, stem] = member
    for key in sorted(entries.keys() ^ pictures.keys())[:1]:
        name, lacks = (entries[key][0], "picture") if key in entries else (pictures[key].name, ".json member")
        raise InputError(f"{shard}/{name}: there is no {lacks} of the same name; {COPY_AGAIN}")
    for key, picture in pictures.items():
        yield *entries[key], picture


def _members(shard: str) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Go through the files in a tar, with the content of those that are JSON."""
    with _plain_errors(shard):
        filesystem, path = _storage(shard)
        with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            place = -1
            for member in tar:
                if member.size < 0 or member.offset <= place:  # tarfile would go round in circles
                    raise tarfile.ReadError(f"the sizes of its members are not possible, as that of {member.name[:80]!r}")
                place = member.offset
                if member.isfile():
                    _check_member(member)
                    yield member, tar.extractfile(member).read() if member.name.endswith(".json") else None
            # tarfile takes a damaged header, and one that was cut off, for the end of the tar
            file.seek(tar.offset)
            if file.read(END_BLOCK) != bytes(END_BLOCK):
                raise tarfile.ReadError(f"unexpected end of data, or a damaged header, at byte {tar.offset:,}")


def _check_member(member: tarfile.TarInfo) -> None:
    if member.issparse():
        raise tarfile.ReadError(f"{member.name[:80]!r} is stored without its empty parts, so it cannot be read by its range")
    if member.size > (MAX_ENTRY if member.name.endswith(".json") else MAX_PICTURE):
        raise tarfile.ReadError(f"{member.name[:80]!r} has {member.size:,} bytes, which no picture or sample has")


def _read_categories(folder: Path | str) -> list[dict]:
    source = f"{folder}/{CATEGORIES}"
    if CATEGORIES not in list_folder(folder):
        raise InputError(f"{source}: there is no such file; shards without an index need COCO's list of categories in it: "
                         '{"categories": [{"id": 1, "name": "cat"}, ...]}')
    return parse_json(io.BytesIO(_read_file(source)), source).get("categories")


def _read_file(path: str) -> bytes:
    with _plain_errors(path):
        filesystem, inner_path = _storage(path)
        return filesystem.cat_file(inner_path)


def _places(images: list[dict], source: str) -> dict[str, tuple[int, int]]:
    """Return the first and the last byte + 1 of each picture in its shard."""
    for number, image in enumerate(images):
        name, offset, length = (image.get(key) for key in ("file_name", "offset", "length"))
        is_place = type(offset) is type(length) is int and 0 <= offset < MAX_PLACE and 0 <= length <= MAX_PICTURE
        if not is_place or not is_possible(name):
            shown = ", ".join(f"{key!r} {str(image.get(key))[:40]!r}" for key in ("file_name", "offset", "length"))
            raise InputError(f"{source}: this is not an index of shards, whose images have a name, an offset and a length: entry "
                             f"{number} of images has {shown}; delete it, or pack the data set anew with tools/pack_shards.py")
    return {image["file_name"]: (image["offset"], image["offset"] + image["length"]) for image in images}


def _check_shards(places: dict[str, tuple[int, int]], shards: Shards, source: str) -> None:
    """Refuse shards that lack something of the index."""
    ends: dict[str, int] = defaultdict(int)
    for name, (_, end) in places.items():
        shard = name.partition("/")[0]
        ends[shard] = max(ends[shard], end)
    missing = [shard for shard in ends if shard not in shards.sizes]
    if missing:
        raise InputError(f"{source}: lists {len(ends)} shards, of which {len(missing)} are not there "
                         f"({', '.join(missing[:5])}{', ...' * (len(missing) > 5)}); {COPY_AGAIN}")
    for shard, end in ends.items():
        size = shards.sizes[shard]
        if size is not None and size < end:
            raise InputError(f"{shards.folder}/{shard}: has {size:,} bytes, but {source} lists pictures up to byte {end:,}; "
                             f"{COPY_AGAIN}")


def _storage(place: Path | str) -> tuple[AbstractFileSystem, str]:
    """Return the storage of a path or an address, and the place in it."""
    if not is_address(place):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(os.path.abspath(place))
    protocol = str(place).partition("://")[0]
    if protocol not in PROTOCOLS or "::" in str(place):
        raise InputError(f"{place}: shards are not read from this kind of address; it must begin with one of "
                         f"{', '.join(f'{name}://' for name in PROTOCOLS)} and hold no '::'")
    return url_to_fs(str(place))


@contextmanager
def _plain_errors(place: Path | str, raised: type[InputError] = InputError) -> Iterator[None]:
    """Say in one message what a storage or tarfile does not like."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:  # fsspec's message names the package
        raise InputError(f"{place}: {error}; pip install the package that reads this kind of address") from None
    except FileNotFoundError:
        raise raised(f"{place}: there is no such file or folder; check data.dataset_dir") from None
    except tarfile.TarError as error:
        raise InputError(f"{place}: this tar is not complete or not a tar ({error}); {COPY_AGAIN}") from None
    except Exception as error:  # every storage has errors of its own
        raise raised(f"{place}: cannot be read ({type(error).__name__}: {error}); check the address, the network and the "
                     "credentials") from error
