"""What an image file is like: its header, or also a small grey version of it and its hashes; many files in threads."""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rfdetr.data.annotations import RawSplit
from rfdetr.data.images import UNREADABLE, read_image
from rfdetr.errors import InputError

THUMBNAIL = 24  # pixels a side
DECODED_SIDE = 64  # pixels at least, of what both are made of
HASH_SIDE = 16  # the hash has a bit for each of 16 x 16 neighbours
MAX_THREADS = 16
ORIENTATION = 0x0112  # EXIF's tag


class ImageFacts(NamedTuple):
    """What was found in one file; a missing file has neither size nor error."""

    size: tuple[int, int] | None = None  # h, w as stored
    mode: str = ""
    orientation: int = 1  # EXIF's; 1 is upright
    error: str = ""  # why it cannot be read
    digest: bytes = b""  # of the file
    difference_hash: bytes = b""  # 32 bytes
    thumbnail: bytes = b""  # THUMBNAIL x THUMBNAIL grey levels


def grey_levels(fact: ImageFacts) -> np.ndarray:
    """Return the thumbnail's pixels, flat."""
    return np.frombuffer(fact.thumbnail, np.uint8)


def gather_facts(raw: RawSplit, *, decode: bool) -> list[ImageFacts]:
    """Look at all files of a split, in threads.

    Args:
        decode: also decode each picture in full, as training does.
    """
    def look(index: int) -> ImageFacts:
        path = Path(raw.image_root) / raw.file_names[index]
        open_file = path.open if raw.open_image is None else lambda mode: raw.open_image(raw.file_names[index])
        height, width = raw.image_sizes[index].tolist()
        return _look(path, open_file, (height, width) if decode else None)

    with ThreadPoolExecutor(min(MAX_THREADS, 4 + (os.cpu_count() or 1))) as pool:
        return list(pool.map(look, range(len(raw.file_names)), chunksize=1))


def _look(path: Path, open_file: Callable, decoded_size: tuple[int, int] | None) -> ImageFacts:
    try:
        with open_file("rb") as file:
            content = file.read()
    except FileNotFoundError:
        return ImageFacts()
    except OSError as error:
        return ImageFacts(error=error.strerror or str(error))
    facts = ImageFacts(digest=hashlib.blake2b(content, digest_size=16).digest())
    try:
        with Image.open(io.BytesIO(content)) as image:
            facts = facts._replace(size=(image.height, image.width), mode=image.mode,
                                   orientation=1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1))
            image.draft("L", (DECODED_SIDE, DECODED_SIDE))  # only JPEG follows it, and is decoded at 1/8 of its size or so
            grey = _grey(image)
    except UNREADABLE as error:
        return facts._replace(error=" ".join(str(error).split()) or type(error).__name__)
    if decoded_size in (facts.size, facts.size[::-1]):  # other sizes are a finding of their own
        try:
            read_image(path, annotated_size=decoded_size, file=io.BytesIO(content))
        except InputError as error:
            facts = facts._replace(error=str(error).removeprefix(f"{path}: "))
    small = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.BOX), dtype=np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return facts._replace(difference_hash=bits.tobytes(), thumbnail=grey.resize((THUMBNAIL, THUMBNAIL), Image.BOX).tobytes())


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut them at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("L")
