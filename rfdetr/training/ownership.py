"""One run a folder: a lock file that names its owner, and decisions that all processes of a run make together."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from engine import CheckpointError
from engine.distributed import gather_objects, is_main_process, rank
from rfdetr.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

logger = logging.getLogger(__name__)

LOCK = ".lock"
Result = TypeVar("Result")

_held: set[int] = set()  # descriptors of locks, which would live on in a loader process that outlives its run


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def together(action: Callable[[], Result]) -> Result:
    """Do what can fail on one process alone; where it does, it fails on all of them, with the message of that one. Collective."""
    result, error = None, None
    try:
        result = action()
    except (InputError, CheckpointError) as caught:
        error = caught
    messages = gather_objects(None if error is None else f"process {rank()} on {socket.gethostname()}: {error}")
    if error is not None:
        raise error
    if message := next((message for message in messages if message), None):
        raise InputError(message)
    return result


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a folder for as long as this lasts, by its main process. Collective.

    Raises:
        InputError: another run owns it; the message says which.
    """
    descriptor = together(lambda: _lock(folder) if is_main_process() else None)
    try:
        yield
    finally:
        if descriptor is not None:
            (folder / LOCK).unlink(missing_ok=True)  # while it is locked: nobody else can hold it
            _held.discard(descriptor)
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Return the descriptor of the lock; None where the system has no locks."""
    path = folder / LOCK
    while fcntl is not None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"train.output_dir: {folder} cannot be written ({error.strerror}); choose another folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, path):
                _held.add(descriptor)
                _write_owner(descriptor)
                return descriptor
        except BlockingIOError:
            owner = "".join(filter(str.isprintable, os.read(descriptor, 200).decode(errors="replace")))
            os.close(descriptor)
            raise InputError(f"train.output_dir: {folder} is in use by another run ({owner or 'which has just started'}); wait "
                             "until it has ended, or choose another folder") from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not start a second run there", folder, error.strerror)
            os.close(descriptor)
            return None
        os.close(descriptor)  # its owner has just gone, and the file with it
    return None


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:  # a full disk: it is locked all the same
        pass
