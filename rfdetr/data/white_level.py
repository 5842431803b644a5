"""The white level of a data set: decided once, for all pictures of more than 8 bits a channel in all splits (deep_pixels.py)."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.deep_pixels import deep_pixels, is_deep
from rfdetr.data.images import MAX_PIXELS, locate, open_picture
from rfdetr.errors import InputError

SAMPLE = 32  # pictures, evenly over the split
SHALLOW_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif")  # 8 bits at most

logger = logging.getLogger(__name__)


def find_white_level(
    raw: RawSplit, find_train: Callable[[], RawSplit | None] | None = None, *, max_pixels: int = MAX_PIXELS
) -> int | None:
    """Return the smallest level that holds what a sample of a split's pictures declares or shows; None: all have 8 bits.

    Args:
        find_train: gives the split that decides, if it is not this one; it is asked only where there is something to decide.
    """
    found = _sample(raw, max_pixels)
    if found and find_train and (train := find_train()) is not None:
        found = _sample(train, max_pixels) or found
    if not found:
        return None
    level, example = max(found)
    logger.warning("%s: pictures have more than 8 bits a channel; %d is taken for white in all of them (data.white_level), as a "
                   "sample needs it (%s)", raw.source, level, example)
    return level


def _sample(raw: RawSplit, max_pixels: int) -> list[tuple[int, str]]:
    """Return the level and a description of each picture that has more than 8 bits; what cannot be read has no say."""
    candidates = [index for index, name in enumerate(raw.file_names) if Path(name).suffix.lower() not in SHALLOW_SUFFIXES]
    found = []
    for place in np.linspace(0, len(candidates) - 1, min(SAMPLE, len(candidates))).astype(int):
        try:
            path, file = locate(raw, candidates[place])
            with open_picture(path, file, max_pixels=max_pixels) as image:
                if is_deep(image):
                    deep = deep_pixels(image)
                    found.append((deep.white_level, f"{raw.file_names[candidates[place]]}: {deep.describe()}"))
        except InputError:
            continue
    return found
