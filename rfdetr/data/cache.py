"""Image files kept in memory as they are on disk, in one piece that all workers share.

Files instead of pixels: they are ten times smaller, and reading is what slow disks and networks make expensive.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from rfdetr.data.annotations import Annotations, PackedBytes
from rfdetr.data.images import ImageError, check_regular
from rfdetr.errors import InputError

USABLE_SHARE = 0.8  # of the free memory; the rest is for the training itself
GIGABYTE = 1e9

logger = logging.getLogger(__name__)


def read_files(annotations: Annotations) -> PackedBytes:
    """Read the files of all images; one that cannot be read is left empty.

    Raises:
        InputError: they are not files, or would not fit into the free memory.
    """
    if annotations.open_image is not None:
        raise InputError(f"data.cache: ram is for image files, and those of {annotations.source} are in shards; use none")
    paths = [annotations.image_path(index) for index in range(len(annotations.image_ids))]
    with ThreadPoolExecutor(max_workers=16) as pool:
        ends = np.cumsum([0, *pool.map(_file_size, paths)], dtype=np.int64)
        needed, free = int(ends[-1]), free_memory()
        if free is not None and needed > USABLE_SHARE * free:
            raise InputError(f"data.cache: ram needs {needed / GIGABYTE:.2f} GB for the {len(paths)} images of "
                             f"{annotations.source}, but only {free / GIGABYTE:.2f} GB of memory are free; use none")
        logger.info("data.cache: the files of %d images take %.2f GB of memory in each training process", len(paths),
                    needed / GIGABYTE)
        data = np.empty(needed, dtype=np.uint8)
        list(pool.map(_read_into, paths, (data[start:end] for start, end in zip(ends, ends[1:]))))
    return PackedBytes(data, ends)


def free_memory() -> int | None:
    """Return the bytes of memory that are free for this process, None where the system does not say."""
    limits = []
    try:
        meminfo = Path("/proc/meminfo").read_text()
        limits.append(int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024)
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        if limit.strip() != "max":
            limits.append(int(limit) - int(used))
    except (OSError, IndexError, ValueError):
        pass  # not Linux, or no limit of a container
    return min(limits) if limits else None


def _file_size(path: Path) -> int:
    try:
        check_regular(path)
        return os.stat(path).st_size if os.access(path, os.R_OK) else 0
    except (OSError, ValueError, ImageError):
        return 0


def _read_into(path: Path, memory: np.ndarray) -> None:
    if len(memory):
        memory[:] = 0  # for what cannot be read, or is no longer there
        with suppress(OSError), open(path, "rb") as file:
            file.readinto(memory)
