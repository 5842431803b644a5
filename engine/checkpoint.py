"""Checkpoint files: whole or not there, checked when read, with the ones before them as a fallback.

A file is a plain `torch.save` archive of tensors and plain values, so ``torch.load(path, weights_only=True)`` reads it. The
archive carries a CRC-32 of each of its records; `load_checkpoint` checks them all before anything is unpickled.
"""

import logging
import os
import pickle
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.files import replacing, sweep_leftovers

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
        keep: how many earlier versions of the file stay beside it, as `previous_path` names them.
    """
    path = Path(path)
    sweep_leftovers(path)
    with replacing(path, before_rename=partial(_shift_versions, path, keep)) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)


def load_checkpoint(path: str | os.PathLike, *, fallback: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        fallback: where the file is damaged or gone, say so and read the version before it.

    Raises:
        CheckpointError: there is no readable file; the message names it and the reason.
    """
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
        return state
    raise CheckpointError("; ".join(reasons))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete checkpoint file ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged, the checksum of its record {damaged!r} is wrong")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: holds more than tensors and plain values, refused ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint's dict")
    return state


def _shift_versions(path: Path, keep: int) -> None:
    """Make each kept version one save older, the current file included."""
    if not path.exists():
        return
    for age in range(keep, 0, -1):
        newer = previous_path(path, age - 1) if age > 1 else path
        if newer.exists():
            os.replace(newer, previous_path(path, age))
