"""Masks as COCO's run lengths: column by column, how many pixels are off, on, off, …"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def run_lengths(masks: Tensor) -> list[dict]:
    """Turn bool masks (n, h, w) or (n, 1, h, w) into uncompressed RLEs {"size": [h, w], "counts": list[int]}.

    Most of a picture is not in the mask: only the columns that hold some of it are read pixel by pixel, which is several
    times faster than giving whole pictures to a COCO package.
    """
    height, width = masks.shape[-2:]
    planes = masks.reshape(-1, height, width).cpu().bool().numpy()
    columns = np.bitwise_or.reduce(planes, axis=1)  # (n, w); faster than any()
    return [{"size": [height, width], "counts": _counts(plane, np.flatnonzero(used))} for plane, used in zip(planes, columns)]


def _counts(plane: np.ndarray, used: np.ndarray) -> list[int]:
    height, width = plane.shape
    if not len(used):
        return [height * width]
    first, last = int(used[0]), int(used[-1]) + 1
    pixels = plane[:, first:last].T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    # around these columns everything is off
    starts_on, ends_on = [0] if pixels[0] else [], [len(pixels)] if pixels[-1] else []
    ends = np.concatenate([starts_on, changes, ends_on]).astype(np.int64) + first * height
    if ends[-1] < height * width:
        ends = np.append(ends, height * width)
    return np.diff(ends, prepend=0).tolist()
