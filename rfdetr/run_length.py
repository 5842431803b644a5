"""Masks as COCO's run lengths: column by column, how many pixels are off, on, off, …"""

from typing import Any

import numpy as np
from torch import Tensor

from rfdetr.values import shown, whole_numbers

GROUP_BITS = 5  # that a character of the compressed form holds
MAX_GROUPS = 7  # characters of a number; 35 bits are more than any picture needs


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """Turn bool masks (n, h, w) or (n, 1, h, w) into uncompressed RLEs {"size": [h, w], "counts": list[int]}.

    Most of a picture is not in the mask: only the columns that hold some of it are read pixel by pixel, which is several
    times faster than giving whole pictures to a COCO package.
    """
    height, width = masks.shape[-2:]
    planes = masks.reshape(-1, height, width).cpu().bool().numpy()
    columns = np.bitwise_or.reduce(planes, axis=1)  # (n, w); faster than any()
    return [{"size": [height, width], "counts": _counts(plane, np.flatnonzero(used))} for plane, used in zip(planes, columns)]


def read_counts(counts: list | str | bytes) -> np.ndarray:
    """Return run lengths (n,) int64 as a file has them: a list, or COCO's compressed string.

    COCO's own packages do not check a string: where it is cut off, they read memory that is not theirs.

    Raises:
        ValueError: they are neither, or one of them is negative.
    """
    if isinstance(counts, list):
        lengths, valid = whole_numbers(counts)
        if not valid.all():
            raise ValueError(f"its run lengths hold {shown(counts[int(np.argmin(valid))])}, which is no whole number")
    elif isinstance(counts, (str, bytes)):
        lengths = _decompress(counts.encode("utf-8", "replace") if isinstance(counts, str) else counts)
    else:
        raise ValueError(f"its run lengths are {shown(counts)}, not a list or a string")
    if (lengths < 0).any():
        raise ValueError("one of its run lengths is negative")
    return lengths


def _decompress(text: bytes) -> np.ndarray:
    """A number is groups of 5 bits, the lowest first; from the fourth on, numbers are differences to the last but one."""
    groups = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - ord("0")
    if not len(groups):
        return groups
    ends = np.flatnonzero((groups & 32) == 0)  # this bit says that another group follows
    if groups.min() < 0 or groups.max() > 63 or not len(ends) or ends[-1] != len(groups) - 1:
        raise ValueError("its compressed run lengths are broken")
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > MAX_GROUPS:
        raise ValueError("its compressed run lengths are broken")
    shifts = GROUP_BITS * (np.arange(len(groups)) - np.repeat(starts, sizes))
    lengths = np.add.reduceat((groups & 31) << shifts, starts)
    lengths -= np.where(groups[ends] & 16, 1 << GROUP_BITS * sizes, 0)  # the highest bit is the sign
    for first in (1, 2):
        lengths[first::2] = np.cumsum(lengths[first::2])
    return lengths


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
