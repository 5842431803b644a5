"""Checkpoints written while training goes on: the state is copied to host memory, and a thread writes the copy."""

import copy
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint import save_checkpoint
from engine.watch import doing

logger = logging.getLogger(__name__)


class BackgroundSaver:
    """Save checkpoints one at a time; a failure is reported in one warning, and the next save tries again.

    Attributes:
        failed: whether the save that ended last could not be written.
    """

    def __init__(self) -> None:
        self.failed = False
        self._error: Exception | None = None  # of the code, not of the disk
        self._thread: threading.Thread | None = None
        self._memory: list[Tensor] = []  # of the copy before: to fill it again takes a third of the time of new memory

    def save(self, state: dict[str, Any], path: Path, *, keep: int = 0) -> None:
        """Copy `state`, and have the copy written to `path`; waits for the save before this one."""
        started = time.perf_counter()
        self.wait()
        copied, self._memory = to_host(state, self._memory)
        logger.debug("%s: training stood still for %.3f s", path.name, time.perf_counter() - started)
        self._thread = threading.Thread(target=self._write, args=(copied, path, keep), name=f"saving {path.name}")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written any more; raise what the thread ended with, unless it was the disk's doing."""
        if self._thread is not None:
            doing("saving")
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: dict[str, Any], path: Path, keep: int) -> None:
        started = time.perf_counter()
        try:
            self.failed = not try_saving(state, path, keep=keep)
        except Exception as error:
            self.failed, self._error = True, error
        logger.debug("%s: written in %.3f s", path.name, time.perf_counter() - started)


def try_saving(state: dict[str, Any], path: Path, *, keep: int = 0) -> bool:
    """Save a checkpoint, and tell whether it is on the disk; a disk that is full or cannot be written ends no training."""
    doing("saving")
    try:
        save_checkpoint(state, path, keep=keep)
    except OSError as error:
        logger.warning("%s could not be saved (%s); training goes on, what was saved before stays, and the next save tries again",
                       path, error.strerror or error)
        return False
    return True


def to_host(state: Any, memory: Sequence[Tensor] = ()) -> tuple[Any, list[Tensor]]:
    """Return a copy in host memory that later steps do not change, and its tensors; tensors that are one stay one.

    Args:
        memory: tensors of an earlier copy that is not needed any more, to be filled again.
    """
    seen: dict[tuple, Tensor] = {}
    return _copied(state, seen, memory), list(seen.values())


def _copied(state: Any, seen: dict[tuple, Tensor], memory: Sequence[Tensor]) -> Any:
    if isinstance(state, Tensor):
        key = (state.untyped_storage()._cdata, state.storage_offset(), state.shape, state.stride(), state.dtype)
        if key not in seen:
            old = memory[len(seen)] if len(seen) < len(memory) else None
            if old is not None and (old.shape, old.stride(), old.dtype) == key[2:]:
                seen[key] = old.copy_(state.detach())
            else:
                seen[key] = state.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(state, dict):
        copied = copy.copy(state)  # with what a module's state knows beside its tensors
        copied.update((key, _copied(value, seen, memory)) for key, value in state.items())
        return copied
    if type(state) in (list, tuple):
        return type(state)(_copied(value, seen, memory) for value in state)
    return state
