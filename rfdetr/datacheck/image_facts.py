"""What an image file is like: its header, or also a small grey version of it and its hashes; many files in threads."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from rfdetr.data.deep_pixels import deep_pixels, is_deep
from rfdetr.data.images import REPLACE, check_regular, locate, open_picture, orientation_of, read_image, to_rgb
from rfdetr.datacheck.split_check import SplitCheck

THUMBNAIL = 24  # pixels a side
DECODED_SIDE = 64  # pixels at least, of what both are made of
HASH_SIDE = 16  # the hash has a bit for each of 16 x 16 neighbours
MAX_THREADS = 16


class ImageFacts(NamedTuple):
    """What was found in one file; a missing file has neither size nor error."""

    size: tuple[int, int] | None = None  # h, w as stored
    mode: str = ""
    orientation: int = 1  # EXIF's; 1 is upright
    error: str = ""  # why it cannot be read
    digest: bytes = b""  # of the file
    difference_hash: bytes = b""  # 32 bytes
    thumbnail: bytes = b""  # THUMBNAIL x THUMBNAIL grey levels
    white_level: int | None = None  # that would hold its values, if they have more than 8 bits ...
    values: str = ""  # ... and the range of them


def grey_levels(fact: ImageFacts) -> np.ndarray:
    """Return the thumbnail's pixels, flat."""
    return np.frombuffer(fact.thumbnail, np.uint8)


def gather_facts(split: SplitCheck, *, decode: bool) -> list[ImageFacts]:
    """Look at all files of a split, in threads.

    Args:
        decode: also decode each picture in full, as training does.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, 4 + (os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda index: _look(split, index, decode), range(len(split.raw.file_names)), chunksize=1))


def _look(split: SplitCheck, index: int, decode: bool) -> ImageFacts:
    path = split.raw.file_names[index]
    facts = ImageFacts()
    try:
        path, file = locate(split.raw, index)
        if file is None:
            check_regular(path)
            file = path.open("rb")
        with file:
            content = file.read()
        facts = facts._replace(digest=hashlib.blake2b(content, digest_size=16).digest())
        with open_picture(path, io.BytesIO(content), max_pixels=split.max_pixels) as image:
            facts = facts._replace(size=(image.height, image.width), mode=image.mode)
            if is_deep(image):
                deep = deep_pixels(image)
                facts = facts._replace(white_level=deep.white_level, values=deep.describe())
                grey = deep.to_image(deep.white_level).convert("L")
            else:
                image.draft("L", (DECODED_SIDE, DECODED_SIDE))  # only JPEG follows it, and is decoded at 1/8 of its size or so
                grey = to_rgb(image).convert("L")
            # EXIF data may come last in PNG; Pillow turns TIFF itself
            facts = facts._replace(orientation=1 if image.format == "TIFF" else orientation_of(image))
        size = tuple(split.raw.image_sizes[index].tolist())
        if decode and size in (facts.size, facts.size[::-1]):  # other sizes are a finding of their own
            read_image(path, annotated_size=size, file=io.BytesIO(content), max_pixels=split.max_pixels,
                       white_level=split.white_level or facts.white_level)
    except FileNotFoundError:
        return ImageFacts()
    except (OSError, ValueError) as error:  # ImageError too
        reason = str(error).removeprefix(f"{path}: ").removesuffix(f"; {REPLACE}")
        return facts._replace(error=getattr(error, "strerror", None) or reason)
    small = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.BOX), dtype=np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return facts._replace(difference_hash=bits.tobytes(), thumbnail=grey.resize((THUMBNAIL, THUMBNAIL), Image.BOX).tobytes())
