"""Checkpoint files: whole or not there, checked when read, with the ones before them as a fallback.

A file is a plain `torch.save` archive of tensors and plain values, so ``torch.load(path, weights_only=True)`` reads it. The
archive carries a CRC-32 of each of its records; `load_checkpoint` checks them all before anything is unpickled.
"""

import logging
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from engine.files import replacing

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or holds more than tensors and plain values."""


def previous_path(path: Path, age: int) -> Path:
    """Return the name of the version that was replaced `age` saves ago: checkpoint.pth -> checkpoint.prev1.pth."""
    return path.with_name(f"{path.stem}.prev{age}{path.suffix}")


def save_checkpoint(state: dict[str, Any], path: str | os.PathLike, *, keep: int = 0) -> None:
    """Write `state` to `path` atomically: temporary file, flushed to disk, renamed.

    Args:
        state: tensors and plain values only.
        keep: how many earlier versions of the file stay beside it, as `previous_path` names them. A damaged one is not kept: it
            would take the place of a good one.

    Raises:
        OSError: it cannot be written; the files that were there still are.
    """
    path = Path(path)
    with replacing(path, before_rename=partial(_shift_versions, path, keep)) as temporary:
        with open(temporary, "wb") as file:
            _write(state, file)
        written = _identity(temporary)
    if len(_sound) > 1000:
        _sound.clear()
    _sound.add(written)


def load_checkpoint(path: str | os.PathLike, *, fallback: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        fallback: where the file is damaged or gone, say so and read the version before it.

    Raises:
        CheckpointError: there is no readable file; the message names it and the reason.
    """
    return find_checkpoint(path, fallback=fallback)[1]


def find_checkpoint(path: str | os.PathLike, *, fallback: bool = False) -> tuple[Path, dict[str, Any]]:
    """Read a checkpoint as `load_checkpoint` does, and tell which file it was."""
    path = Path(path)
    candidates = [path]
    if fallback:
        candidates += sorted(path.parent.glob(f"{path.stem}.prev*{path.suffix}"), key=lambda p: (len(p.name), p.name))
    reasons = []
    for candidate in candidates:
        try:
            state = _read(candidate)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            logger.warning("%s; using %s instead", reason, candidate)
        return candidate, state
    raise CheckpointError("; ".join(reasons))


def fingerprint(path: str | os.PathLike) -> str:
    """Return a checksum of what a checkpoint holds, made of those of its records: quick, also for a large file.

    Raises:
        CheckpointError: it is missing, or no checkpoint.
    """
    with _border(Path(path)), zipfile.ZipFile(path) as archive:
        records = [(entry.filename.partition("/")[2], entry.CRC, entry.file_size) for entry in archive.infolist()]
    return f"{zlib.crc32(repr(records).encode()):08x}"


def _read(path: Path) -> dict[str, Any]:
    with _border(path):
        if not path.exists() and not path.is_symlink():
            raise CheckpointError(f"{path}: no such checkpoint")
        with _whole(path) as file:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                raise CheckpointError(f"{path}: holds more than tensors and plain values, refused ({_one_line(error)})"
                                      ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint's dict")
    return state


@contextmanager
def _border(path: Path) -> Iterator[None]:
    """Report whatever is wrong with a file as one kind of error: a damaged archive raises nearly anything when it is read."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: not a complete checkpoint file ({_one_line(error)})") from error


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file, which stays the same one should a run replace it meanwhile.

    Refuses what is no regular file, is larger when unpacked, or does not have the checksums that it should.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its other end
        raise CheckpointError(f"{path}: not a complete checkpoint file (it is not a regular file)")
    with open(path, "rb") as file:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
                sum(entry.file_size for entry in entries) > found.st_size
            ):
                raise CheckpointError(f"{path}: damaged, or not written by torch.save (its records are packed or larger than "
                                      "itself)")
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"{path}: damaged, the checksum of its record {damaged!r} is wrong")
        file.seek(0)
        yield file


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _Output:
    """A file that remembers why it could not be written: what torch.save reports then is about its own bookkeeping."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    output = _Output(file)
    try:
        torch.save(state, output)  # type: ignore[arg-type]  # any object with write and flush will do
    except RuntimeError:
        if output.error is None:
            raise
        raise output.error from None


_sound: set[tuple[int, int, int, int]] = set()  # identities of files that this process has written, or has found to be whole


def _identity(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_sound(path: Path) -> bool:
    """Tell whether a file can be kept; each is looked at once."""
    try:
        if _identity(path) not in _sound:
            with _whole(path):
                _sound.add(_identity(path))
    except Exception as error:
        logger.warning("%s is damaged and not kept (%s)", path, _one_line(error))
        return False
    return True


def _shift_versions(path: Path, keep: int) -> None:
    """Make each kept version one save older, the current file included."""
    for age in range(keep, 0, -1):
        newer = previous_path(path, age - 1) if age > 1 else path
        if newer.exists() and _is_sound(newer):
            os.replace(newer, previous_path(path, age))
