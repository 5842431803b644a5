"""The white level of a data set: decided once, for all pictures of more than 8 bits a channel in all splits (deep_pixels.py)."""

import logging
from pathlib import Path

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.deep_pixels import deep_pixels, is_deep
from rfdetr.data.images import MAX_PIXELS, locate, open_picture
from rfdetr.errors import InputError

SAMPLE = 32  # pictures, evenly over the split
SHALLOW_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif")  # 8 bits at most

logger = logging.getLogger(__name__)


def find_white_level(raw: RawSplit, *, max_pixels: int = MAX_PIXELS) -> int | None:
    """Return the smallest level that holds what a sample of a split's pictures declares or shows; None: all have 8 bits.

    Pictures that cannot be read have no say.
    """
    candidates = [index for index, name in enumerate(raw.file_names) if Path(name).suffix.lower() not in SHALLOW_SUFFIXES]
    chosen = np.linspace(0, len(candidates) - 1, min(SAMPLE, len(candidates))).astype(int)
    levels, example = [], ""
    for index in chosen:
        try:
            path, file = locate(raw, candidates[index])
            with open_picture(path, file, max_pixels=max_pixels) as image:
                if is_deep(image):
                    deep = deep_pixels(image)
                    levels.append(deep.white_level)
                    example = example if levels[-1] < max(levels) else f"{raw.file_names[candidates[index]]}: {deep.describe()}"
        except InputError:
            continue
    if not levels:
        return None
    logger.warning("%s: pictures have more than 8 bits a channel; %d is taken for white in all of them (data.white_level), as a "
                   "sample needs it (%s)", raw.source, max(levels), example)
    return max(levels)
